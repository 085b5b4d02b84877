// TensorBoard imports this module into a frame of its own and calls render().
import {start} from './static/app.js';

export function render() {
  for (const href of ['static/vendor/uplot.css', 'static/app.css']) {
    const link = document.createElement('link');
    Object.assign(link, {rel: 'stylesheet', href});
    document.head.append(link);
  }
  start(document.body);
}
