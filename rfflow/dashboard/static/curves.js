// Curves of all runs over each other.
import {html, useEffect, useMemo, useRef, useState} from './vendor/htm-preact.js';
import uPlot from './vendor/uplot.js';
import {hue, remember, remembered, shown} from './words.js';

const AXES = {step: 'step', chunk: 'chunk', rows: 'rows seen', time: 'time'};
const NEAR = 24; // pixels within which a point is meant: further away a run has no value there
const FEW = 12; // so many names, and bands, can be told apart
const WHOLE = [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8].flatMap(ten => [ten, 2 * ten, 5 * ten]); // there is no half a step
const GRAINS = 600; // places of a time axis: the clocks of runs have no moments in common

// Points of one metric, of the evaluation that belongs to it, or of its own limits, by run:
// {number: [[step, chunk, time, value, evaluation, low, high], ...]}
export const metricsFor = metric => (metric.startsWith('eval_') ? [metric, '', `${metric}_low`, `${metric}_high`] : [metric, `eval_${metric}`]);

export function Curves({state, points, version, metric, setMetric, selected, select, visible}) {
  const [view, setView] = useState(() => remembered('view', {axis: 'step', smoothing: 0, logX: false, logY: false, evaluations: false}));
  const [width, setWidth] = useState(0), box = useRef(), plot = useRef(), drawn = useRef([]), latest = useRef({});
  latest.current = {select};
  const change = part => setView(before => { const next = {...before, ...part}; remember('view', next); return next; });
  const metrics = useMemo(() => [...new Set([metric, ...state.runs.flatMap(run => Object.keys(run.metrics || {}))])].sort(), [state.runs, metric]);
  useEffect(() => {
    const watch = new ResizeObserver(([area]) => setWidth(Math.floor(area.contentRect.width)));
    watch.observe(box.current);
    return () => watch.disconnect();
  }, []);
  const lines = useMemo(() => linesOf(state.runs, points, view, visible), [version, state.runs, view, visible]);
  useEffect(() => {
    if (!width) return;
    const data = lines.length ? uPlot.join(lines.map(line => [line.xs, line.ys])) : [[]];
    const key = JSON.stringify([lines.map(line => [line.run, line.isEvaluation]), view, selected, width, metric, document.documentElement.className]);
    drawn.current = lines;
    if (plot.current?.key === key) { plot.current.setData(data); return; }
    plot.current?.destroy();
    plot.current = Object.assign(new uPlot(options({lines, view, selected, width, metric, drawn}), data, box.current), {key});
    let focused = null;
    plot.current.hooks.setSeries = [(_, index) => { focused = index; }];
    plot.current.over.addEventListener('click', () => { const line = focused && drawn.current[focused - 1]; if (line) latest.current.select([line.run]); });
  }, [lines, selected, width, metric]);
  useEffect(() => () => plot.current?.destroy(), []);
  return html`<div class="bar"><h3>Curves</h3>
      <select aria-label="metric" id="metric" value=${metric} onChange=${e => setMetric(e.target.value)}>${metrics.map(name => html`<option value=${name} selected=${name === metric}>${name}</option>`)}</select> by
      <select aria-label="axis" id="axis" value=${view.axis} onChange=${e => change({axis: e.target.value})}>${Object.entries(AXES).map(([key, title]) => html`<option value=${key} selected=${key === view.axis}>${title}</option>`)}</select>
      <label>smoothing <input id="smoothing" type="range" min="0" max="0.98" step="0.02" value=${view.smoothing} onInput=${e => change({smoothing: Number(e.target.value)})} /></label>
      <label><input id="logx" type="checkbox" checked=${view.logX} onChange=${e => change({logX: e.target.checked})} /> log x</label>
      <label><input id="logy" type="checkbox" checked=${view.logY} onChange=${e => change({logY: e.target.checked})} /> log y</label>
      ${!metric.startsWith('eval_') && html`<label><input id="evaluations" type="checkbox" checked=${view.evaluations} onChange=${e => change({evaluations: e.target.checked})} /> eval points</label>`}</div>
    <div id="plot" ref=${box}></div>${!lines.length && html`<p class="dim">No run has logged ${metric} yet.</p>`}`;
}

function linesOf(runs, points, view, visible) {
  const found = [], spread = view.axis === 'time' ? grainOf(points) : 0;
  for (const run of runs) {
    if (run.state === 'deleted' || !visible(run) || !points.has(run.number)) continue;
    const lines = [new Map(), new Map()], limits = new Map();
    for (const [step, chunk, time, value, evaluation, low, high] of points.get(run.number)) {
      const x = {step, chunk: (chunk ?? 0) + (run.chunks_before ?? 0), rows: run.rows ? step * run.rows : null, time: spread ? Math.round(time / spread) * spread : time}[view.axis];
      if (x == null || (view.logX && x <= 0)) continue;
      for (const [which, y] of [[0, value], [1, view.evaluations ? evaluation : null]]) if (y != null && !(view.logY && y <= 0)) lines[which].set(x, y);
      if (low != null && high != null && !(view.logY && low <= 0)) limits.set(x, [low, high]);
    }
    lines.forEach((line, isEvaluation) => {
      if (!line.size) return;
      const xs = [...line.keys()].sort((a, b) => a - b), ys = xs.map(x => line.get(x));
      found.push({run: run.number, isEvaluation: Boolean(isEvaluation), xs, ys: isEvaluation ? ys : smoothed(ys, view.smoothing), limits: isEvaluation ? new Map() : limits});
    });
  }
  return found;
}

function grainOf(points) {
  const times = [...points.values()].flat().map(point => point[2]);
  return times.length ? (times.reduce((a, b) => Math.max(a, b)) - times.reduce((a, b) => Math.min(a, b))) / GRAINS : 0;
}

// An exponential mean that does not begin at zero.
function smoothed(ys, weight) {
  if (!weight) return ys;
  let sum = 0, total = 0;
  return ys.map(y => { sum = sum * weight + y; total = total * weight + 1; return sum / total; });
}

// Whose limits are shown: of those that are selected, or of all where they are few.
function banded(lines, selected) {
  const known = lines.filter(line => line.limits.size);
  return selected.length || known.length > FEW ? known.filter(line => selected.includes(line.run)) : known;
}

function drawBands({ctx, bbox, valToPos}, lines) {
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  for (const {run, limits} of lines) {
    const points = [...limits].sort(([one], [other]) => one - other);
    const edge = end => points.map(([x, ends]) => [valToPos(x, 'x', true), valToPos(ends[end], 'y', true)]);
    ctx.beginPath();
    for (const [x, y] of [...edge(1), ...edge(0).reverse()]) ctx.lineTo(x, y);
    ctx.closePath();
    ctx.fillStyle = ctx.strokeStyle = hue(run);
    ctx.globalAlpha = 0.12;
    ctx.fill();
    ctx.globalAlpha = 0.4;
    ctx.stroke();
  }
  ctx.restore();
}

function options({lines, view, selected, width, metric, drawn}) {
  const ink = getComputedStyle(document.documentElement).getPropertyValue('--dim').trim();
  const axis = {stroke: ink, grid: {stroke: '#8883'}, ticks: {stroke: '#8883'}};
  const scale = isLog => (isLog ? {distr: 3, log: 10} : {});
  const bands = () => banded(drawn.current, selected);
  const range = (_, min, max) => { // the limits are in it, too
    if (min == null) return [null, null];
    for (const [low, high] of bands().flatMap(line => [...line.limits.values()])) [min, max] = [Math.min(min, low), Math.max(max, high)];
    return view.logY ? uPlot.rangeLog(min, max, 10, false) : uPlot.rangeNum(min, max, 0.1, true);
  };
  const said = (plot, value, series, place) => {
    const limits = drawn.current[series - 1]?.limits.get(plot.data[0][place]);
    return value == null ? '--' : limits ? `${shown(value)} [${limits.map(shown).join(', ')}]` : shown(value);
  };
  const pale = number => selected.length > 0 && !selected.includes(number);
  return {
    width, height: 320, cursor: {focus: {prox: NEAR}, hover: {prox: NEAR}}, focus: {alpha: 0.3}, legend: {show: lines.length <= FEW}, hooks: {drawAxes: [plot => drawBands(plot, bands())]},
    scales: {x: {time: view.axis === 'time', ...scale(view.logX)}, y: {...scale(view.logY), range}},
    axes: [view.axis === 'time' ? axis : {...axis, incrs: WHOLE}, {...axis, size: 60, values: (_, ticks) => ticks.map(tick => (tick == null ? '' : shown(tick)))}],
    series: [{label: AXES[view.axis]}, ...lines.map(({run, isEvaluation}) => ({
      label: isEvaluation ? `${run} eval` : `run ${run}`, stroke: hue(run), width: isEvaluation ? 0 : selected.includes(run) ? 3 : 1.4,
      alpha: pale(run) ? 0.3 : 1, spanGaps: true, value: said,
      points: isEvaluation || metric.startsWith('eval_') ? {show: true, size: 6, fill: hue(run)} : {show: false},
    }))],
  };
}
