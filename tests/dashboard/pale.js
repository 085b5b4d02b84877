// What of a page is too pale to be read: less than 4.5 to 1, by WCAG 2.
root => {
  const numbers = text => (text.match(/[\d.]+/g) ?? []).map(Number);
  const linear = c => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = node => {
    for (; node; node = node.parentElement) {
      const [r, g, b, a = 1] = numbers(getComputedStyle(node).backgroundColor);
      if (a > 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const ratio = node => {
    const [high, low] = [light(numbers(getComputedStyle(node).color)), light(ground(node))].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  return [...root.querySelectorAll('*')]
    .filter(node => [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim()))
    .filter(node => node.checkVisibility({visibilityProperty: true}) && !node.closest('button:disabled, option, script, style'))
    .filter(node => ratio(node) < 4.5)
    .map(node => [node.tagName, node.className, node.innerText.slice(0, 30), ratio(node).toFixed(1)]);
}
