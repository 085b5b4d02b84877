// The tab: what the server said, and what is selected. Names of fields are those of the files.
import {html, render, useCallback, useEffect, useMemo, useRef, useState} from './vendor/htm-preact.js';
import {Clone} from './clone.js';
import {Curves, metricsFor} from './curves.js';
import {Detail} from './detail.js';
import {Buttons, Log, useOps, whyNot} from './ops.js';
import {Runs} from './runs.js';
import {ask, giveKey, listing, usePolling} from './server.js';
import {Timeline} from './timeline.js';
import {duration, filterOf} from './words.js';

const EVERY = 1000; // milliseconds between two looks

function App() {
  const [said, setSaid] = useState(null), [name, setName] = useState(null);
  const load = () => listing().then(found => { setSaid(found); setName(before => (found.experiments.find(each => each.name === before) ?? found.experiments[0])?.name ?? null); }, error => setSaid({error: error.message, experiments: []}));
  usePolling(load, 15_000, []);
  if (!said) return html`<header>Reading…</header>`;
  if (name === null) return html`<header>${said.error || 'No experiment of rfflow lies below this logdir.'}</header>`;
  return html`<${Experiment} key=${name} name=${name} listed=${said} setName=${setName} load=${load} />`;
}

function Experiment({name, listed, setName, load}) {
  const [state, setState] = useState(null), [error, setError] = useState(''), [version, setVersion] = useState(0);
  const [selected, select] = useState([]), [baseline, setBaseline] = useState(null), [filter, setFilter] = useState('');
  const [isCloning, setCloning] = useState(false), [isOpen, setOpen] = useState(false), [metric, setMetric] = useState(null);
  const seen = useRef({tag: '', cursor: 0, metric: null, points: new Map(), ops: [], timeline: []});
  if (seen.current.metric !== metric) Object.assign(seen.current, {metric, cursor: 0, points: new Map()});

  const refresh = usePolling(async isOver => {
    const {tag, cursor, metric: asked, ops, timeline} = seen.current, known = {ops: ops.length, chunks: `${timeline.length},${timeline.at(-1)?.[3] ?? 0}`};
    try {
      const said = await ask('state', {experiment: name, tag, ...known, ...(asked && {since: cursor, metrics: metricsFor(asked)})});
      if (isOver() || seen.current.metric !== asked) return;
      seen.current.tag = said.tag;
      for (const [run, ...point] of said.points ?? []) {
        if (!seen.current.points.has(run)) seen.current.points.set(run, []);
        seen.current.points.get(run).push(point);
      }
      if (said.points) seen.current.cursor = said.cursor;
      if (said.points?.length) setVersion(before => before + 1);
      if (!said.same) {
        // Of what only grows, what is new was said.
        seen.current.ops = [...ops.slice(0, said.ops_from), ...said.ops];
        seen.current.timeline = [...timeline.slice(0, said.timeline_from), ...said.timeline];
        setState({...said, ops: seen.current.ops, timeline: seen.current.timeline});
        setMetric(before => before ?? said.objective.metric);
      }
      setError('');
    } catch (problem) { if (!isOver()) { setError(problem.message); load(); } } // its directory may be gone, or the server
  }, EVERY, [name, metric]);
  const [answers, give] = useOps(name, refresh);
  const runs = state?.runs ?? [];
  const visible = useMemo(() => filterOf(filter, runs).passes, [filter, runs]);
  const open = useCallback(() => setOpen(true), []), close = useCallback(() => setOpen(false), []);

  if (!state) return html`<header>${error || 'Reading…'}</header>`;
  const readOnly = listed.read_only ?? state.no_ops;
  return html`<${Header} name=${name} listed=${listed} state=${state} setName=${setName} load=${load} error=${error} />
    <main><section>
      <${Buttons} runs=${runs} selected=${selected} select=${select} readOnly=${readOnly} give=${give} clone=${() => setCloning(true)} open=${open} />
      <${Runs} state=${state} selected=${selected} select=${select} baseline=${baseline} setBaseline=${setBaseline} open=${open} filter=${filter} setFilter=${setFilter} />
      <div class="bar"><h3>Ops</h3><span class="dim">what was asked, by whom, and what came of it</span></div><${Log} state=${state} answers=${answers} /></section>
    <section><${Curves} state=${state} points=${seen.current.points} version=${version} metric=${metric ?? ''} setMetric=${setMetric} selected=${selected} select=${select} visible=${visible} />
      <${Timeline} chunks=${state.timeline} selected=${selected} select=${select} />
      ${isOpen && selected.length > 0 && html`<${Detail} name=${name} state=${state} selected=${selected} close=${close} />`}</section></main>
    ${isCloning && !whyNot('clone', selected, runs, readOnly) && html`<${Clone} name=${name} parents=${selected} runs=${runs} give=${give} close=${() => setCloning(false)} />`}`;
}

function Header({name, listed, state, setName, load, error}) {
  const going = !state.alive ? 'not running' : state.waiting ? 'waits for an op' : 'running';
  const live = state.runs.filter(run => ['queued', 'running'].includes(run.state)), left = live.map(run => run.left);
  const slots = new Set(state.timeline.map(chunk => chunk[4])).size || 1, sum = left.reduce((all, own) => all + own, 0);
  const time = left.includes(null) ? '' : `, ${duration(Math.max(...left, sum / slots))} left`;
  return html`<header><b>rfflow</b>
      <select id="experiment" aria-label="experiment" value=${name} onChange=${e => setName(e.target.value)}>${listed.experiments.map(each => html`<option value=${each.name} selected=${each.name === name}>${each.name}${each.alive ? '' : ' (not running)'}</option>`)}</select>
      <span id="going" class="pill ${state.alive ? 'on' : ''}">${going}</span>
      <span class="dim">${state.runs.length} ${state.runs.length === 1 ? 'run' : 'runs'}${live.length ? `, ${live.length} to train${time}` : ''} · ranked by ${state.objective.metric}, ${state.objective.direction}</span>
      ${error && html`<span class="bad">${error}</span>`}</header>
    ${listed.read_only && html`<div class="note" id="readonly">${listed.read_only} ${listed.alone && html`<a href=${listed.alone} target="_blank" rel="noopener">Open it by itself</a>`} ${listed.key && html`<${Key} file=${listed.key} load=${load} />`}</div>`}
    ${state.no_ops && html`<div class="note" id="noops">${state.no_ops}</div>`}
    ${state.hint && html`<div class="note" id="hint">${state.hint}</div>`}`;
}

function Key({file, load}) {
  const [key, setKey] = useState('');
  return html`<form class="bar" onSubmit=${e => { e.preventDefault(); giveKey(key); load(); }}><label>key, from ${file} on the server: <input id="key" type="password" value=${key} onInput=${e => setKey(e.target.value)} /></label><button>Give</button></form>`;
}

export function start(body) {
  const theme = () => document.documentElement.classList.toggle('dark', parent.document.body.classList.contains('dark-mode'));
  try { theme(); new MutationObserver(theme).observe(parent.document.body, {attributes: true, attributeFilter: ['class']}); } catch { /* framed by another page */ }
  const root = document.createElement('div');
  body.append(root);
  render(html`<${App} />`, root);
}
