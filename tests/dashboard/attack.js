// What a page of another site may try: by scripts, with and without a preflight, by forms, and by what browsers load.
async tab => {
  const said = {}, op = JSON.stringify({experiment: 'toys', op: {op: 'stop', run: 3}});
  const headers = {'Content-Type': 'application/json', 'X-Rfflow': '1'};
  const go = async (name, path, init) => {
    try { const answer = await fetch(tab + path, init); said[name] = `${answer.type} ${answer.status}`; } catch (error) { said[name] = error.name; }
  };
  await go('text', 'op', {method: 'POST', mode: 'no-cors', body: op});
  await go('json', 'op', {method: 'POST', headers, body: op});
  await go('json without a preflight', 'op', {method: 'POST', mode: 'no-cors', headers, body: op});
  await go('the token', 'experiments', {});
  const form = Object.assign(document.createElement('form'), {method: 'POST', action: `${tab}op`, enctype: 'text/plain', target: 'sink'});
  form.append(Object.assign(document.createElement('input'), {name: `${op.slice(0, -1)},"x":"`, value: '"}'}));
  document.body.append(form);
  const sink = document.querySelector('iframe'), loaded = new Promise(done => { sink.onload = done; });
  form.submit();
  await loaded;
  // A form that its own site hands on with its method and content.
  const handedOn = new Promise(done => { sink.onload = done; });
  form.action = `/hand-on?to=${encodeURIComponent(`${tab}op`)}`;
  form.submit();
  await handedOn;
  navigator.sendBeacon(`${tab}op`, new Blob([op], {type: 'application/json'}));
  await go('kept alive', 'op', {method: 'POST', headers, body: op, keepalive: true});
  said.script = await new Promise(done => {
    const names = Object.keys(window), script = Object.assign(document.createElement('script'), {src: `${tab}experiments`});
    script.onload = script.onerror = () => done(Object.keys(window).filter(name => !names.includes(name)).join());
    document.body.append(script);
  });
  said.events = await new Promise(done => { new EventSource(`${tab}experiments`).onerror = event => { event.target.close(); done('refused'); }; });
  const popup = window.open(`${tab.split('data/')[0]}#rfflow`);
  said.popup = await new Promise(done => {
    const timer = setInterval(() => {
      try { if (popup.location.href !== 'about:blank') { clearInterval(timer); done('read'); } } catch (error) { clearInterval(timer); done(error.name); }
    }, 50);
  });
  popup.close();
  return said;
}
