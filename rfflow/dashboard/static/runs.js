// The table: one row a run, any column, what differs from a baseline.
import {html, useMemo, useRef, useState} from './vendor/htm-preact.js';
import {clock, difference, duration, filterOf, hue, overridesOf, remember, remembered, shown} from './words.js';

const USUAL = ['rank', 'overrides', 'objective', 'best', 'state', 'slot', 'chunk', 'step', 'loss', 'seconds', 'left', 'parent'];

export function Runs({state, selected, select, baseline, setBaseline, open, filter, setFilter}) {
  const {runs, objective} = state;
  const [sort, setSort] = useState(['rank', 1]), [chosen, setChosen] = useState(() => remembered('columns', USUAL));
  const [current, setCurrent] = useState(null), anchor = useRef(null), body = useRef();
  const columns = useMemo(() => columnsOf(runs, objective), [runs, objective]);
  const shownColumns = columns.filter(column => chosen.includes(column.key));
  const {passes, unknown} = filterOf(filter, runs);
  const by = columns.find(column => column.key === sort[0]) ?? columns[0];
  const rows = runs.filter(passes).sort((a, b) => order(by.value(a), by.value(b), sort[1]) || a.number - b.number);
  const pinned = runs.find(run => run.number === baseline);
  if (pinned) rows.splice(0, rows.length, pinned, ...rows.filter(run => run !== pinned));

  const choose = key => {
    const next = chosen.includes(key) ? chosen.filter(name => name !== key) : [...chosen, key];
    setChosen(next);
    remember('columns', next);
  };
  const click = (event, number) => {
    const numbers = rows.map(run => run.number);
    if (event.shiftKey && numbers.includes(anchor.current)) {
      const [a, b] = [numbers.indexOf(anchor.current), numbers.indexOf(number)].sort((x, y) => x - y);
      select(numbers.slice(a, b + 1));
      return;
    }
    anchor.current = number;
    if (event.ctrlKey || event.metaKey || event.target.type === 'checkbox') select(selected.includes(number) ? selected.filter(n => n !== number) : [...selected, number]);
    else select(selected.length === 1 && selected[0] === number ? [] : [number]);
  };
  const pin = number => setBaseline(number === baseline ? null : number);
  const press = (event, number) => {
    if (event.target !== event.currentTarget || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = rows.findIndex(run => run.number === number), to = {ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1}[event.key];
    if (event.key === ' ') select(selected.includes(number) ? selected.filter(n => n !== number) : [...selected, number]);
    else if (event.key === 'Enter') { select([number]); open(); }
    else if (event.key === 'p') pin(number);
    else if (to !== undefined) {
      body.current.children[to]?.focus();
      if (event.shiftKey && rows[to]) select([...new Set([...selected, number, rows[to].number])]);
    } else return;
    event.preventDefault();
  };
  // One stop for the Tab key, however many rows there are: the arrows go on from it.
  const stop = rows.some(run => run.number === current) ? current : rows[0]?.number;
  return html`<div class="bar">
      <input id="filter" aria-label="filter" placeholder="filter: lr>1e-4 state:running" value=${filter} onInput=${e => setFilter(e.target.value)} />
      ${unknown.length > 0 && html`<span class="bad">no run has ${unknown.join(', ')}</span>`}
      <span class="dim">${rows.length === runs.length ? '' : `${rows.length} of ${runs.length}`}</span>
      <details class="menu"><summary>Columns</summary><div>${columns.filter(c => c.key !== 'number').map(column => html`<label><input type="checkbox" data-column=${column.key} checked=${chosen.includes(column.key)} onChange=${() => choose(column.key)} /> ${column.title}</label>`)}
        <button onClick=${() => { setChosen(USUAL); remember('columns', USUAL); }}>As at first</button></div></details></div>
    <div class="scroll"><table id="runs" aria-label="runs"><thead><tr><th><input type="checkbox" aria-label="select all" checked=${rows.length > 0 && rows.every(run => selected.includes(run.number))} onChange=${e => select(e.target.checked ? rows.map(run => run.number) : [])} /></th>
      ${[columns[0], ...shownColumns.filter(c => c.key !== 'number')].map(c => html`<th class=${c.isText ? '' : 'number'} aria-sort=${sort[0] === c.key ? (sort[1] > 0 ? 'ascending' : 'descending') : 'none'}><button onClick=${() => setSort([c.key, sort[0] === c.key ? -sort[1] : 1])}>${c.title}${sort[0] === c.key ? (sort[1] > 0 ? ' ▲' : ' ▼') : ''}</button></th>`)}<th></th></tr></thead>
    <tbody ref=${body}>${rows.map(run => html`<tr key=${run.number} data-run=${run.number} tabindex=${run.number === stop ? 0 : -1} onFocus=${() => setCurrent(run.number)} aria-selected=${selected.includes(run.number)} class="${selected.includes(run.number) ? 'selected' : ''} ${run === pinned ? 'pinned' : ''}"
        onClick=${e => click(e, run.number)} onKeyDown=${e => press(e, run.number)} onDblClick=${open}>
      <td><input type="checkbox" tabindex="-1" aria-label="select run ${run.number}" checked=${selected.includes(run.number)} /></td>
      <td class="number"><span class="swatch" style="background:${hue(run.number)}"></span>${run.number}</td>
      ${shownColumns.filter(c => c.key !== 'number').map(c => html`<td class="${c.isText ? 'text' : 'number'} ${c.key === 'state' ? run.state : ''}" data-key=${c.key} title=${c.isText ? c.value(run) : null}>${c.text ? c.text(run) : shown(c.value(run))}${c.isMetric && pinned && pinned !== run && differs(c, run, pinned)}</td>`)}
      <td><button class="quiet" data-pin=${run.number} tabindex="-1" title="compare the others with this run (key: p)" aria-pressed=${run === pinned} onClick=${e => { e.stopPropagation(); pin(run.number); }}>${run === pinned ? 'baseline' : 'pin'}</button></td></tr>`)}</tbody></table></div>`;
}

function differs(column, run, pinned) {
  const [own, other] = [column.value(run), column.value(pinned)];
  return typeof own === 'number' && typeof other === 'number' ? html` <span class="dim">${difference(own - other)}</span>` : null;
}

// Numbers, then words (NaN is one), then what a run has not, whichever way each of these is sorted.
const kind = value => (value == null || value === '' ? 2 : typeof value === 'number' ? 0 : 1);

function order(a, b, way) {
  return kind(a) - kind(b) || (a > b ? way : a < b ? -way : 0);
}

function columnsOf(runs, objective) {
  const all = new Set(runs.flatMap(run => run.overrides || []));
  const common = new Set([...all].filter(text => runs.length > 1 && runs.every(run => (run.overrides || []).includes(text))));
  const own = run => (run.overrides || []).filter(text => !common.has(text)).join(' ');
  const keys = [...new Set(runs.flatMap(run => Object.keys(overridesOf(run))))];
  const metrics = [...new Set(runs.flatMap(run => Object.keys(run.metrics || {})))].sort();
  const number = text => (text !== undefined && text !== '' && Number.isFinite(Number(text)) ? Number(text) : text);
  const held = run => (run.state === 'running' && run.since ? `${run.slot} since ${clock(run.since)}` : run.slot ?? '');
  const metric = (key, title, value) => ({key, title, value, isMetric: true});
  return [
    {key: 'number', title: 'run', value: run => run.number},
    {key: 'rank', title: '#', value: run => run.rank, text: run => (run.rank === 1 ? '★' : run.rank ?? '')},
    {key: 'overrides', title: 'overrides', value: own, isText: true},
    {key: 'every override', title: 'every override', value: run => (run.overrides || []).join(' '), isText: true},
    ...keys.map(key => ({key: `override ${key}`, title: key, value: run => number(overridesOf(run)[key])})),
    metric('objective', objective.metric, run => run.metrics?.[objective.metric]),
    metric('best', `best ${objective.metric}`, run => run.best?.[objective.metric]),
    {key: 'state', title: 'state', value: run => run.state, isText: true},
    {key: 'slot', title: 'slot', value: run => run.slot, text: held},
    {key: 'chunk', title: 'chunk', value: run => run.chunk ?? 0, text: run => `${run.chunk ?? 0}/${run.chunks ?? '?'}`},
    {key: 'step', title: 'step', value: run => run.step, text: run => `${run.step}/${run.steps ?? '?'}`},
    ...metrics.filter(name => name !== objective.metric).flatMap(name => [metric(name, name, run => run.metrics?.[name]), metric(`best ${name}`, `best ${name}`, run => run.best?.[name])]),
    {key: 'seconds', title: 'time', value: run => run.seconds, text: run => duration(run.seconds)},
    {key: 'left', title: 'left', value: run => run.left, text: run => duration(run.left)},
    {key: 'parent', title: 'parent', value: run => run.parent},
  ];
}
