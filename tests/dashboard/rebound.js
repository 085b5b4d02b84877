// The same once the name of that page leads to this server: it is of one origin with it then.
async () => {
  const op = JSON.stringify({experiment: 'toys', op: {op: 'stop', run: 3}});
  const read = await fetch('/data/plugin/rfflow/experiments'), said = await read.text();
  const headers = {'Content-Type': 'application/json', 'X-Rfflow': '1'};
  const write = await fetch('/data/plugin/rfflow/op', {method: 'POST', headers, body: op});
  return [read.status, said.includes('token'), write.status];
}
