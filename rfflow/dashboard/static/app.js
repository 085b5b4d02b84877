// The tab: what the server said, and what is selected. Names of fields are those of the files.
import {html, render, useEffect, useMemo, useRef, useState} from './vendor/htm-preact.js';
import uPlot from './vendor/uplot.js';

const EVERY = 1000; // milliseconds between two looks
const hue = number => `hsl(${(number * 137.5) % 360} 65% 50%)`;
const shown = value => (typeof value === 'number' ? String(Number(value.toPrecision(4))) : value ?? '');

// A tab of TensorBoard that is not chosen shows in nothing but the visibility of its frame.
const isShown = () => !document.hidden && !(window.frameElement && getComputedStyle(window.frameElement).visibility === 'hidden');

async function ask(path, parameters = {}) {
  const response = await fetch(`${path}?${new URLSearchParams(parameters)}`);
  const body = await response.json();
  if (!response.ok) throw Error(body.error);
  return body;
}

// Calls again and again, one call at a time, while the tab is shown.
function usePolling(call, dependencies) {
  useEffect(() => {
    let isOver = false, timer;
    const go = async () => {
      if (isShown()) await call(() => isOver);
      if (!isOver) timer = setTimeout(go, EVERY);
    };
    go();
    return () => { isOver = true; clearTimeout(timer); };
  }, dependencies);
}

function App() {
  const [experiments, setExperiments] = useState([]), [name, setName] = useState(null), [error, setError] = useState('');
  useEffect(() => {
    ask('experiments').then(({experiments}) => { setExperiments(experiments); setName(experiments[0]?.name ?? null); }, e => setError(e.message));
  }, []);
  if (name === null) return html`<header>${error || 'No experiment of rfflow lies below this logdir.'}</header>`;
  return html`<${Experiment} key=${name} name=${name} experiments=${experiments} setName=${setName} />`;
}

function Experiment({name, experiments, setName}) {
  const [state, setState] = useState(null), [error, setError] = useState(''), [selected, select] = useState([]);
  const tag = useRef('');
  usePolling(async isOver => {
    try {
      const said = await ask('state', {experiment: name, tag: tag.current});
      if (isOver()) return;
      tag.current = said.tag;
      if (!said.same) setState(said);
      setError('');
    } catch (e) { if (!isOver()) setError(e.message); }
  }, [name]);
  if (!state) return html`<header>${error || 'Reading…'}</header>`;
  const going = !state.alive ? 'not running' : state.waiting ? 'waits for an op' : 'running';
  return html`<header><b>rfflow</b>
      <select aria-label="experiment" value=${name} onChange=${e => setName(e.target.value)}>${experiments.map(x => html`<option value=${x.name}>${x.name}</option>`)}</select>
      <span id="going">${going}</span><span class="dim">${state.runs.length} runs · read-only: ops are given with rfflow ctl</span> ${error}</header>
    <main><section><${Runs} runs=${state.runs} selected=${selected} select=${select} /><${Ops} ops=${state.ops} /></section>
      <section><${Curves} name=${name} runs=${state.runs} selected=${selected} select=${select} /></section></main>`;
}

function Runs({runs, selected, select}) {
  const [sort, setSort] = useState(['number', 1]), [filter, setFilter] = useState('');
  const metrics = useMemo(() => [...new Set(runs.flatMap(run => Object.keys(run.metrics)))].filter(m => /loss|reward|accuracy/.test(m)), [runs]);
  const common = runs.length > 1 ? new Set((runs[0].overrides || []).filter(o => runs.every(run => run.overrides.includes(o)))) : new Set();
  const columns = {
    number: run => run.number, overrides: run => run.overrides.filter(o => !common.has(o)).join(' '), state: run => run.state, slot: run => run.slot,
    chunk: run => run.chunk, step: run => run.step, parent: run => run.parent, ...Object.fromEntries(metrics.map(m => [m, run => run.metrics[m]])),
  };
  const [key, direction] = sort, value = columns[key] ?? columns.number;
  const rows = runs.filter(run => filter.split(/\s+/).every(word => `${run.number} ${run.overrides.join(' ')} state:${run.state}`.includes(word)));
  rows.sort((a, b) => { const x = value(a), y = value(b); return x == null ? 1 : y == null ? -1 : (x > y ? 1 : x < y ? -1 : a.number - b.number) * direction; });
  const toggle = n => select(selected.includes(n) ? selected.filter(x => x !== n) : [...selected, n]);
  return html`<div class="bar"><input aria-label="filter" placeholder="filter: lr= state:running" value=${filter} onInput=${e => setFilter(e.target.value)} /></div>
    <div class="scroll"><table id="runs"><thead><tr>${Object.keys(columns).map(c => html`<th><button onClick=${() => setSort([c, key === c ? -direction : 1])}>${c === 'number' ? 'run' : c}${key === c ? (direction > 0 ? ' ▲' : ' ▼') : ''}</button></th>`)}</tr></thead>
    <tbody>${rows.map(run => html`<tr key=${run.number} data-run=${run.number} tabindex="0" class=${selected.includes(run.number) ? 'selected' : ''} onClick=${() => toggle(run.number)}
      onKeyDown=${e => { if (e.key === ' ' || e.key === 'Enter') { e.preventDefault(); toggle(run.number); } }}>${Object.entries(columns).map(([c, of]) => html`<td>${c === 'number' && html`<span class="swatch" style="background:${hue(run.number)}"></span>`}${shown(of(run))}${c === 'chunk' && run.chunks ? `/${run.chunks}` : ''}${c === 'step' && run.steps ? `/${run.steps}` : ''}</td>`)}</tr>`)}</tbody></table></div>`;
}

function Ops({ops}) {
  return html`<div class="scroll" id="ops">${ops.slice(-100).reverse().map(op => html`<div><span class="dim">${(op.time || '').slice(11, 19)} ${op.by}</span> ${op.detail}</div>`)}</div>`;
}

function Curves({name, runs, selected, select}) {
  const [metric, setMetric] = useState('loss'), [axis, setAxis] = useState('step'), [version, setVersion] = useState(0);
  const data = useRef({cursor: 0, points: []}), box = useRef(), plot = useRef();
  usePolling(async isOver => {
    try {
      const said = await ask('points', {experiment: name, since: data.current.cursor});
      if (isOver() || !said.points.length) return;
      data.current = {cursor: said.cursor, points: [...data.current.points, ...said.points]};
      setVersion(said.cursor);
    } catch { /* the header says it */ }
  }, [name]);
  const metrics = useMemo(() => [...new Set(data.current.points.flatMap(p => Object.keys(p[4])))].sort(), [version]);
  useEffect(() => {
    const before = Object.fromEntries(runs.map(run => [run.number, run.chunks_before || 0]));
    const lines = new Map(runs.filter(run => run.state !== 'deleted').map(run => [run.number, new Map()]));
    for (const [run, step, chunk, time, values] of data.current.points) {
      if (!(metric in values) || !lines.has(run)) continue;
      lines.get(run).set(axis === 'step' ? step : axis === 'time' ? time : (chunk ?? 0) + before[run], values[metric]);
    }
    const drawn = [...lines].filter(([, line]) => line.size);
    plot.current?.destroy();
    plot.current = null;
    if (!drawn.length) return;
    const tables = drawn.map(([, line]) => { const xs = [...line.keys()].sort((a, b) => a - b); return [xs, xs.map(x => line.get(x))]; });
    let focused = null;
    const ink = getComputedStyle(document.documentElement).getPropertyValue('--dim');
    plot.current = new uPlot({
      width: box.current.clientWidth || 500, height: 320, scales: {x: {time: axis === 'time'}}, cursor: {focus: {prox: 24}}, focus: {alpha: 0.3}, legend: {show: drawn.length <= 12},
      axes: [{stroke: ink}, {stroke: ink, size: 60}], hooks: {setSeries: [(_, index) => { focused = index; }]},
      series: [{label: axis}, ...drawn.map(([n]) => ({label: `run ${n}`, stroke: hue(n), width: selected.includes(n) ? 3 : 1.3, spanGaps: true}))],
    }, uPlot.join(tables), box.current);
    plot.current.over.addEventListener('click', () => { if (focused) select([drawn[focused - 1][0]]); });
  }, [version, metric, axis, runs, selected]);
  useEffect(() => () => plot.current?.destroy(), []);
  return html`<div class="bar"><select aria-label="metric" id="metric" value=${metric} onChange=${e => setMetric(e.target.value)}>${metrics.map(m => html`<option value=${m}>${m}</option>`)}</select> by
    <select aria-label="axis" id="axis" value=${axis} onChange=${e => setAxis(e.target.value)}>${['step', 'chunk', 'time'].map(a => html`<option value=${a}>${a}</option>`)}</select>
    <span class="dim">a click on a curve selects its run</span></div><div id="plot" ref=${box}></div>`;
}

export function start(body) {
  const theme = () => document.documentElement.classList.toggle('dark', parent.document.body.classList.contains('dark-mode'));
  try { theme(); new MutationObserver(theme).observe(parent.document.body, {attributes: true, attributeFilter: ['class']}); } catch { /* framed by another page */ }
  const root = document.createElement('div');
  body.append(root);
  render(html`<${App} />`, root);
}
