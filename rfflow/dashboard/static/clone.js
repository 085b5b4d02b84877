// The dialog that makes clones: what each would be stands there before one presses the button.
import {html, useEffect, useRef, useState} from './vendor/htm-preact.js';
import {Dialog} from './ops.js';
import {latest, post} from './server.js';
import {shown, spans, words} from './words.js';

const PAGE = String(Math.random()); // of this page's checks the server answers only the latest in full

export function Clone({name, parents, runs, give, close}) {
  const [text, setText] = useState(''), [isWarm, setWarm] = useState(false), [said, setSaid] = useState(null);
  const [matches, setMatches] = useState([]), [more, setMore] = useState(0), [at, setAt] = useState(0), field = useRef();
  const check = useRef(latest(asked => post('check', asked), (asked, answer) => !answer.superseded && setSaid({...answer, for: asked.for}))).current;
  const complete = useRef(latest(asked => post('complete', asked), (asked, answer) => { setMatches(answer.matches ?? []); setMore(answer.more ?? 0); setAt(0); })).current;
  const last = /\s$/.test(text) ? '' : words(text).at(-1) ?? '', isEmpty = !words(text).length && !isWarm;
  const now = `${isWarm} ${text}`, isCurrent = !isEmpty && said?.for === now;
  useEffect(() => field.current.focus(), []);
  useEffect(() => {
    const timer = setTimeout(() => {
      if (text) complete({experiment: name, run: parents[0], word: last}); else setMatches([]);
      if (!isEmpty) check({experiment: name, runs: parents, overrides: words(text), warm_start: isWarm, page: PAGE, for: now});
    }, 120);
    return () => clearTimeout(timer);
  }, [text, isWarm]);
  const take = match => { setText(text.slice(0, text.length - last.length) + match.text); field.current.focus(); };
  const submit = () => {
    if (!isCurrent || !said.ok) return;
    give({op: 'clone', run: parents.length === 1 ? parents[0] : parents, overrides: words(text), warm_start: isWarm});
    close();
  };
  const press = event => {
    if (event.key === 'Tab' && !event.shiftKey && matches.length) { event.preventDefault(); take(matches[at]); }
    else if (event.key === 'ArrowDown' && matches.length) { event.preventDefault(); setAt((at + 1) % matches.length); }
    else if (event.key === 'ArrowUp' && matches.length) { event.preventDefault(); setAt((at + matches.length - 1) % matches.length); }
    else if (event.key === 'Enter') { event.preventDefault(); submit(); }
  };
  return html`<${Dialog} close=${close} title="Clone run ${spans(parents)}">
    <div class="dim">${parents.slice(0, 4).map(n => html`<div>run ${n}: ${(runs.find(run => run.number === n)?.overrides ?? []).join(' ')}</div>`)}
      Overrides on top of these, in Hydra's grammar. Commas make several clones: lr=1e-4,5e-4</div>
    <textarea id="overrides" aria-label="overrides" rows="2" spellcheck="false" ref=${field} value=${text} onInput=${e => setText(e.target.value)} onKeyDown=${press}></textarea>
    <div id="matches" role="listbox" class="matches">${matches.slice(0, 40).map((match, i) => html`<div role="option" aria-selected=${i === at} class=${i === at ? 'at' : ''} onMouseDown=${e => { e.preventDefault(); take(match); }}>${match.text} <span class="dim">${match.help}</span></div>`)}
      ${more > 0 && html`<div class="dim">and ${more} more</div>`}</div>
    <div class="bar"><label><input id="warm" type="checkbox" checked=${isWarm} onChange=${e => setWarm(e.target.checked)} /> warm start: begin with the parent's weights</label>
      ${matches.length > 0 && html`<span class="dim">Tab takes what is marked</span>`}</div>
    <div id="check" aria-live="polite" class="scroll ${isCurrent ? 'current' : 'dim'}">
      ${isEmpty ? html`<span class="dim">Give overrides, or a warm start: it would repeat its parent.</span>` : said && (said.ok ? html`<${Clones} said=${said} />` : html`<div class="bad">${said.error}</div>`)}</div>
    <div class="bar"><button id="submit" class="primary" disabled=${!isCurrent || !said.ok} onClick=${submit}>${isCurrent && said.ok && said.count > 1 ? `Make ${said.count} clones` : 'Clone'}</button><button onClick=${close}>Cancel</button></div></${Dialog}>`;
}

const Clones = ({said}) => html`<div class="good">${said.count} ${said.count === 1 ? 'clone' : 'clones'}${said.count > said.clones.length ? `, of which the first ${said.clones.length}:` : ':'}</div>
  ${said.clones.map(clone => html`<div class="clone"><b>${clone.overrides.join(' ') || 'as its parent'}</b> <span class="dim">of run ${clone.parent}</span>
    <table>${clone.changes.map(([key, before, after]) => html`<tr><td>${key}</td><td class="dim">${before === null ? 'not given' : shown(before)}</td><td>→ ${after === null ? 'not given' : shown(after)}</td></tr>`)}</table>
    ${!clone.changes.length && html`<span class="dim">nothing changes</span>`}</div>`)}`;
