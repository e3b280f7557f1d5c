// Prints the answer to an HTTP request: node fetch.js SOCKET PATH
const http = require('http');

const [socketPath, path] = process.argv.slice(2);
http.get({ socketPath, path }, (response) => {
  response.pipe(process.stdout);
  process.exitCode = response.statusCode === 200 ? 0 : 1;
});
