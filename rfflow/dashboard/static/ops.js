// Stop, resume, delete; what came of them; and everybody's ops.
import {html, useEffect, useRef, useState} from './vendor/htm-preact.js';
import {ask, post} from './server.js';
import {clock, spans} from './words.js';

const STATES = {
  stop: ['queued', 'running'], resume: ['stopped'],
  clone: ['queued', 'running', 'stopped', 'completed', 'failed'], delete: ['queued', 'running', 'stopped', 'completed', 'failed'],
};

// Why an op cannot be given for these runs; null where it can.
export function whyNot(verb, selected, runs, readOnly) {
  if (readOnly) return readOnly;
  if (!selected.length) return 'Select runs first.';
  const other = runs.find(run => selected.includes(run.number) && !STATES[verb].includes(run.state));
  return other ? `Run ${other.number} is ${other.state}. A run to ${verb} is ${STATES[verb].join(', ')}.` : null;
}

// Gives ops and waits for their answers: [answers, give].
export function useOps(name, refresh) {
  const [answers, setAnswers] = useState([]);
  const give = async op => {
    const begun = performance.now(), id = `${begun}`;
    const tell = change => setAnswers(all => all.map(each => (each.id === id ? {...each, ...change, milliseconds: performance.now() - begun} : each)));
    setAnswers(all => [{id, op}, ...all].slice(0, 20));
    try {
      let said = await post('op', {experiment: name, op});
      const {file} = said;
      while (said.text === undefined) {
        refresh();
        await new Promise(done => setTimeout(done, 300));
        said = await ask('answer', {experiment: name, file});
      }
      tell(said);
    } catch (error) { tell({applied: false, text: error.message}); }
    refresh();
  };
  return [answers, give];
}

export function Buttons({runs, selected, readOnly, give, clone, open, select}) {
  const [isAsking, setAsking] = useState(false);
  const run = selected.length === 1 ? selected[0] : selected;
  const button = (verb, title, action, kind = '') => {
    const reason = whyNot(verb, selected, runs, readOnly);
    return html`<button id=${verb} class=${kind} aria-disabled=${reason !== null} title=${reason ?? ''} disabled=${reason !== null} onClick=${action}>${title}</button>`;
  };
  return html`<div class="bar" role="toolbar" aria-label="ops">
    ${button('stop', 'Stop', () => give({op: 'stop', run}))}${button('resume', 'Resume', () => give({op: 'resume', run}))}
    ${button('clone', 'Clone…', clone, 'primary')}${button('delete', 'Delete…', () => setAsking(true))}
    <button id="open" disabled=${!selected.length} onClick=${open}>${selected.length > 1 ? 'Compare' : 'Details'}</button>
    <span class="dim" id="selection">${selected.length ? html`run ${spans(selected)} selected <button class="quiet" onClick=${() => select([])}>none</button>` : 'click a run, or a curve; ctrl or shift for several'}</span></div>
    ${isAsking && html`<${Dialog} close=${() => setAsking(false)} title="Delete run ${spans(selected)}?">
      <p>${selected.length > 1 ? 'Their' : 'Its'} curves go, and no further op is taken on ${selected.length > 1 ? 'them' : 'it'}. Checkpoints stay.</p>
      <div class="bar"><button id="really" class="danger" onClick=${() => { setAsking(false); give({op: 'delete', run}); }}>Delete ${spans(selected)}</button><button onClick=${() => setAsking(false)}>Cancel</button></div></${Dialog}>`}`;
}

export function Dialog({title, close, children}) {
  const box = useRef();
  useEffect(() => { box.current.showModal(); }, []);
  return html`<dialog ref=${box} aria-label=${title} onClose=${close} onClick=${e => e.target === box.current && close()}><h3>${title}</h3>${children}</dialog>`;
}

export function Log({state, answers}) {
  const waiting = state.policy || state.pending.length ? state.pending : [];
  return html`<div class="scroll log" id="ops" aria-live="polite">
    ${answers.slice(0, 5).map(each => html`<div class="answer ${each.text === undefined ? '' : each.applied ? 'applied' : 'refused'}" key=${each.id}>
      ${each.text === undefined ? html`<span class="dim">${each.op.op} ${spans([each.op.run].flat())}: asked; it is applied at the end of the chunk that is going…</span>` : html`<span class=${each.applied ? 'good' : 'bad'}>${each.text}</span> <span class="dim">${(each.milliseconds / 1000).toFixed(1)} s</span>`}</div>`)}
    ${waiting.map(each => html`<div class="dim" key=${each.file}>waits: ${each.file}</div>`)}
    ${state.ops.slice(-200).reverse().map(op => html`<${Line} key=${`${op.time}${op.run}${op.clone}`} op=${op} />`)}</div>`;
}

const who = op => (op.by === 'person' ? (/-tab\.yaml$/.test(op.file) ? 'person, here' : /^\d{8}-\d{6}-\d{9}-/.test(op.file) ? 'person, ctl' : 'person, file') : op.by);

export const Line = ({op}) => html`<div><span class="dim">${clock(op.time)}</span> <span class="pill" title=${op.file}>${who(op)}</span> <span class=${op.outcome === 'applied' ? '' : 'bad'}>${op.detail}</span></div>`;
