// How values are written, and how what people type is read.
export const hue = number => `hsl(${(number * 137.5) % 360} 65% ${42 + (number % 3) * 8}%)`;

export function shown(value) {
  if (value == null) return '';
  if (typeof value === 'object') return JSON.stringify(value);
  if (typeof value !== 'number' || Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(3).replace(/\.?0+e/, 'e') : String(Number(value.toPrecision(4)));
}

export const difference = value => (value > 0 ? '+' : value < 0 ? '−' : '±') + shown(Math.abs(value));

export function duration(seconds) {
  if (seconds == null || Number.isNaN(seconds)) return '';
  return seconds < 90 ? `${seconds.toFixed(0)} s` : seconds < 5400 ? `${(seconds / 60).toFixed(0)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// 10:00:00, where the browser is; of a time as ISO 8601 writes it
export const clock = time => (Number.isNaN(Date.parse(time)) ? '' : new Date(time).toLocaleTimeString([], {hourCycle: 'h23', hour: '2-digit', minute: '2-digit', second: '2-digit'}));

// 0-3, 5
export function spans(numbers) {
  const parts = [];
  for (const number of [...numbers].sort((a, b) => a - b)) {
    const last = parts.at(-1);
    if (last && last[1] === number - 1) last[1] = number; else parts.push([number, number]);
  }
  return parts.map(([a, b]) => (a === b ? a : `${a}-${b}`)).join(', ');
}

// The overrides of a run by key, the plus left out: {lr: '0.001', peft: 'lora'}
export const overridesOf = run => Object.fromEntries((run.overrides || []).map(text => {
  const at = text.indexOf('=');
  return at < 0 ? [text, ''] : [text.slice(0, at).replace(/^\++/, ''), text.slice(at + 1)];
}));

// Splits at blanks outside quotes and brackets, as a command line of overrides is read.
export function words(text) {
  const found = [];
  let word = '', depth = 0, quote = '';
  for (const c of text) {
    if (quote) { word += c; if (c === quote) quote = ''; continue; }
    if (/\s/.test(c) && !depth) { if (word) found.push(word); word = ''; continue; }
    word += c;
    if (c === '"' || c === "'") quote = c;
    else if ('[{('.includes(c)) depth++;
    else if (']})'.includes(c)) depth--;
  }
  return word ? [...found, word] : found;
}

const COMPARED = {
  '>': (a, b) => a > b, '<': (a, b) => a < b, '>=': (a, b) => a >= b, '<=': (a, b) => a <= b,
  '=': (a, b) => a === b, '!=': (a, b) => a !== b, ':': (a, b) => (typeof a === 'string' ? a.includes(String(b)) : a === b),
};
const plain = text => (text !== '' && Number.isFinite(Number(text)) ? Number(text) : text);

// What a word of a filter calls lr, args.lr, state or eval_loss, of a run; undefined where the run has none.
function valueOf(run, key) {
  if (key === 'run') return run.number;
  if (run.metrics && key in run.metrics) return run.metrics[key];
  const own = overridesOf(run), found = Object.keys(own).find(name => name === key || name.endsWith(`.${key}`));
  return found !== undefined ? plain(own[found]) : typeof run[key] === 'object' ? undefined : run[key] ?? undefined;
}

function holds(own, sign, value) {
  if (own === undefined || own === null) return false;
  if (typeof own === 'number') return COMPARED[sign](own, Number(value));
  return !(/[<>]/.test(sign) && typeof plain(value) === 'number') && COMPARED[sign](own, value); // a loss of NaN is neither more nor less
}

// `lr>1e-4 state:running` → a function of a run, and the words that no run has anything of.
export function filterOf(text, runs) {
  const tests = [], unknown = [];
  for (const word of text.split(/\s+/).filter(Boolean)) {
    const [, key, sign, value] = /^([^<>=!:]+)(>=|<=|!=|[<>=:])(.*)$/.exec(word) ?? [];
    if (!sign) { tests.push(run => `${run.number} ${(run.overrides || []).join(' ')} ${run.state}`.includes(word)); continue; }
    if (value === '') continue; // still being typed
    if (!runs.some(run => valueOf(run, key) !== undefined)) { unknown.push(key); continue; }
    tests.push(run => holds(valueOf(run, key), sign, value));
  }
  return {passes: run => tests.every(test => test(run)), unknown};
}

// A nested configuration as [dotted key, value] in its own order.
export function flat(node, prefix = '') {
  if (node === null || typeof node !== 'object' || Array.isArray(node) || !Object.keys(node).length) return [[prefix, node]];
  return Object.entries(node).flatMap(([key, value]) => flat(value, prefix ? `${prefix}.${key}` : key));
}

// What this browser remembers for the next time.
export const remembered = (name, otherwise) => { try { return JSON.parse(localStorage.getItem(`rfflow.${name}`)) ?? otherwise; } catch { return otherwise; } };
export const remember = (name, value) => { try { localStorage.setItem(`rfflow.${name}`, JSON.stringify(value)); } catch { /* private windows */ } };
