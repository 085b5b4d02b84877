// One run, or what several of them differ in and have answered.
import {html, useEffect, useState} from './vendor/htm-preact.js';
import {Line} from './ops.js';
import {ask} from './server.js';
import {flat, hue, shown} from './words.js';

const MOST = 8;

export function Detail({name, state, selected, close}) {
  const numbers = selected.slice(0, MOST), isOne = numbers.length === 1;
  const [tab, setTab] = useState('configuration');
  const tabs = isOne ? ['configuration', 'log', 'ops', 'generations'] : ['configuration', 'generations'];
  const chosen = tabs.includes(tab) ? tab : tabs[0];
  return html`<section id="detail" aria-label="details" onKeyDown=${e => e.key === 'Escape' && close()}>
    <div class="bar"><h3>${isOne ? `Run ${numbers[0]}` : `Runs ${numbers.join(', ')}${selected.length > MOST ? ` of ${selected.length}` : ''}`}</h3>
      <span role="tablist">${tabs.map(each => html`<button role="tab" aria-selected=${each === chosen} onClick=${() => setTab(each)}>${each === 'configuration' && !isOne ? 'differences' : each}</button>`)}</span>
      <button id="close" onClick=${close}>Close</button></div>
    ${chosen === 'configuration' && isOne && html`<${Activations} run=${state.runs.find(run => run.number === numbers[0])} />`}
    ${chosen === 'configuration' && html`<${Configurations} name=${name} numbers=${numbers} />`}
    ${chosen === 'log' && html`<${RunLog} name=${name} number=${numbers[0]} updated=${state.updated} />`}
    ${chosen === 'ops' && html`<div class="scroll">${state.ops.filter(op => op.run === numbers[0] || op.clone === numbers[0]).map(op => html`<${Line} op=${op} />`)}</div>`}
    ${chosen === 'generations' && html`<${Generations} name=${name} numbers=${numbers} updated=${state.updated} />`}</section>`;
}

function useAnswer(call, dependencies) {
  const [said, setSaid] = useState(null);
  useEffect(() => {
    let isOver = false;
    call().then(answer => !isOver && setSaid(answer), error => !isOver && setSaid({error: error.message}));
    return () => { isOver = true; };
  }, dependencies);
  return said;
}

// What a run does with activations, which its configuration may leave to rfflow.
function Activations({run}) {
  if (!run?.activations) return null;
  const how = run.activations.startsWith('every') ? `${run.activations} layer's recomputed` : run.activations;
  return html`<p id="activations">Activations: ${how} <span class="dim">(${run.activations_why})</span></p>`;
}

// All keys of one run; of several, those in which they differ.
function Configurations({name, numbers}) {
  const [filter, setFilter] = useState('');
  const said = useAnswer(() => Promise.all(numbers.map(run => ask('run', {experiment: name, run}))), [name, numbers.join()]);
  if (!said || said.error) return html`<p class="dim">${said?.error ?? 'Reading…'}</p>`;
  const configs = said.map(each => new Map(flat(each.config)));
  const keys = [...new Set(configs.flatMap(config => [...config.keys()]))];
  const rows = keys.filter(key => key.includes(filter) && (configs.length === 1 || new Set(configs.map(config => JSON.stringify(config.get(key)))).size > 1));
  return html`<div class="bar"><input aria-label="filter keys" placeholder="key" value=${filter} onInput=${e => setFilter(e.target.value)} />
      <span class="dim">${configs.length > 1 ? `${rows.length} of ${keys.length} keys differ` : `${rows.length} keys`}</span></div>
    <div class="scroll"><table id="config"><thead><tr><th>key</th>${numbers.map(n => html`<th><span class="swatch" style="background:${hue(n)}"></span>run ${n}</th>`)}</tr></thead>
    <tbody>${rows.map(key => html`<tr><td>${key}</td>${configs.map(config => html`<td>${config.has(key) ? (config.get(key) === null ? 'null' : shown(config.get(key))) : html`<span class="dim">—</span>`}</td>`)}</tr>`)}</tbody></table></div>`;
}

function RunLog({name, number, updated}) {
  const said = useAnswer(() => ask('run', {experiment: name, run: number}), [name, number, updated]);
  return html`<pre id="log" class="scroll">${said?.error ?? said?.log ?? 'Reading…'}${said?.log === '' ? 'Nothing yet.' : ''}</pre>`;
}

// What the runs have answered to the same rows, side by side.
function Generations({name, numbers, updated}) {
  const [chunk, setChunk] = useState('last');
  const said = useAnswer(() => ask('generations', {experiment: name, runs: numbers.join()}), [name, numbers.join(), updated]);
  if (!said || said.error) return html`<p class="dim">${said?.error ?? 'Reading…'}</p>`;
  const lines = numbers.map(n => said.runs[n] ?? []), chunks = [...new Set(lines.flat().map(line => line.chunk))].sort((a, b) => a - b);
  if (!chunks.length) return html`<p class="dim">Nothing was generated. evaluation.generate.samples=3 asks for it at every chunk's end.</p>`;
  const of = (own, row) => own.filter(line => line.row === row && (chunk === 'last' || line.chunk === Number(chunk))).at(-1);
  const rows = [...new Set(lines.flat().map(line => line.row))].sort((a, b) => a - b);
  return html`<div class="bar">after chunk <select aria-label="chunk" value=${chunk} onChange=${e => setChunk(e.target.value)}><option value="last">last</option>${chunks.map(each => html`<option value=${each}>${each}</option>`)}</select></div>
    <div class="scroll"><table id="generations"><thead><tr><th>prompt</th><th>the data's answer</th>${numbers.map(n => html`<th><span class="swatch" style="background:${hue(n)}"></span>run ${n}</th>`)}</tr></thead>
    <tbody>${rows.map(row => { const any = lines.map(own => of(own, row)).find(Boolean); return html`<tr><td>${any?.prompt}</td><td class="dim">${any?.reference}</td>${lines.map(own => { const line = of(own, row); return html`<td>${line?.answer ?? ''} ${line && html`<span class="dim">chunk ${line.chunk}</span>`}</td>`; })}</tr>`; })}</tbody></table></div>`;
}
