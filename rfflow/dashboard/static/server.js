// Asking the server. Paths are relative, so that --path_prefix and proxies make no difference.
import {useEffect, useRef} from './vendor/htm-preact.js';

const rights = {token: '', key: ''};
try { rights.key = sessionStorage.getItem('rfflow.key') || ''; } catch { /* a frame without storage */ }

const headers = () => (rights.key ? {'X-Rfflow-Key': rights.key} : {});

async function answered(response) {
  const body = await response.json().catch(() => ({error: `The server said ${response.status}.`}));
  if (!response.ok) throw Error(body.error);
  return body;
}

export const ask = async (path, parameters = {}) =>
  answered(await fetch(`${path}?${new URLSearchParams(parameters)}`, {headers: headers()}));

export const post = async (path, body) =>
  answered(await fetch(path, {method: 'POST', headers: {...headers(), 'Content-Type': 'application/json', 'X-Rfflow': rights.token}, body: JSON.stringify(body)}));

// The experiments, and why this page may only read; null where it may give ops.
export async function listing() {
  const said = await ask('experiments');
  rights.token = said.token || '';
  if (!isFramed()) return said;
  return {...said, read_only: said.read_only || 'Read-only: another site, or a notebook, shows this page inside its own.', alone: addressOfTensorBoard()};
}

function addressOfTensorBoard() {
  try { return new URL('#rfflow', parent.location.href).href; } catch { return null; }
}

export function giveKey(key) {
  rights.key = key.trim();
  try { sessionStorage.setItem('rfflow.key', rights.key); } catch { /* it lasts as long as the page */ }
}

// Whoever shows TensorBoard in a frame could lead clicks here; what is above cannot be read then.
function isFramed() {
  try { return !window.top.document; } catch { return true; }
}

// A tab of TensorBoard that is not chosen shows in nothing but the visibility of its frame.
const isShown = () => !document.hidden && !(window.frameElement && getComputedStyle(window.frameElement).visibility === 'hidden');

// Calls again and again, one call at a time, while the tab is shown; returns what calls at once.
export function usePolling(call, milliseconds, dependencies) {
  const now = useRef(() => {});
  useEffect(() => {
    let isOver = false, timer, isBusy = false;
    const go = async () => {
      clearTimeout(timer);
      if (isBusy) return;
      isBusy = true;
      if (isShown()) await call(() => isOver);
      isBusy = false;
      if (!isOver) timer = setTimeout(go, milliseconds);
    };
    now.current = go;
    go();
    return () => { isOver = true; clearTimeout(timer); };
  }, dependencies);
  return () => now.current();
}

// One request at a time; what was asked for meanwhile is asked next, and only the last of it.
export function latest(ask, tell) {
  let isBusy = false, next = null;
  return async function go(value) {
    if (isBusy) { next = value; return; }
    isBusy = true;
    try { tell(value, await ask(value)); } catch (error) { tell(value, {ok: false, error: error.message}); }
    isBusy = false;
    if (next !== null) { const value = next; next = null; go(value); }
  };
}
