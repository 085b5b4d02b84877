// Which run held which slot when: a lane a slot.
import {html, useEffect, useRef, useState} from './vendor/htm-preact.js';
import {duration, hue} from './words.js';

const LANE = 22, LEFT = 44;

export function Timeline({chunks, selected, select}) {
  const canvas = useRef(), [said, say] = useState(''), [width, setWidth] = useState(0);
  const slots = [...new Set(chunks.map(chunk => chunk[4] ?? 0))].sort((a, b) => a - b);
  const start = Math.min(...chunks.map(chunk => chunk[2])), end = Math.max(...chunks.map(chunk => chunk[3]));
  const height = slots.length * LANE + 18, x = time => LEFT + ((time - start) / (end - start || 1)) * (width - LEFT - 6);
  useEffect(() => {
    const watch = new ResizeObserver(([box]) => setWidth(Math.floor(box.contentRect.width)));
    watch.observe(canvas.current.parentElement);
    return () => watch.disconnect();
  }, []);
  useEffect(() => {
    if (!width || !chunks.length) return;
    const ratio = devicePixelRatio || 1, pen = Object.assign(canvas.current, {width: width * ratio, height: height * ratio}).getContext('2d');
    const dim = getComputedStyle(document.documentElement).getPropertyValue('--dim');
    pen.scale(ratio, ratio);
    pen.font = '11px Roboto, system-ui, sans-serif';
    pen.fillStyle = dim;
    slots.forEach((slot, lane) => pen.fillText(`slot ${slot}`, 2, lane * LANE + 15));
    for (const [run, , from, to, slot] of chunks) {
      pen.globalAlpha = !selected.length || selected.includes(run) ? 1 : 0.25;
      pen.fillStyle = hue(run);
      pen.fillRect(x(from), slots.indexOf(slot ?? 0) * LANE + 2, Math.max(1, x(to) - x(from) - 0.5), LANE - 4);
    }
    pen.globalAlpha = 1;
    pen.fillStyle = dim;
    pen.fillText('0', LEFT, height - 4);
    pen.fillText(duration(end - start), width - 50, height - 4);
  }, [chunks, selected, width]);
  const at = event => {
    const box = canvas.current.getBoundingClientRect(), lane = Math.floor((event.clientY - box.top) / LANE);
    const time = start + ((event.clientX - box.left - LEFT) / (width - LEFT - 6)) * (end - start);
    return chunks.find(([, , from, to, slot]) => (slot ?? 0) === slots[lane] && from <= time && time <= to);
  };
  const tell = found => (found ? `run ${found[0]}, chunk ${found[1]}, slot ${found[4] ?? 0}: ${(found[3] - found[2]).toFixed(1)} s` : '');
  return html`<div class="bar"><h3>Timeline</h3><span class="dim" id="held">${said}</span></div>
    <div class="timeline"><canvas id="timeline" ref=${canvas} style="width:${width}px;height:${height}px" role="img" aria-label="which run held which slot when"
      onMouseMove=${e => say(tell(at(e)))} onMouseLeave=${() => say('')} onClick=${e => { const found = at(e); if (found) select([found[0]]); }}></canvas></div>`;
}
