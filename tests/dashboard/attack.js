// What a page of another site may try: by scripts, with and without a preflight, and by a form.
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
  return said;
}
