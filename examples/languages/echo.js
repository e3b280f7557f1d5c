// Sends a message and prints the echo: node echo.js SOCKET MESSAGE
const net = require('net');

const [path, message] = process.argv.slice(2);
const connection = net.connect({ path });
connection.end(message); // nothing more comes: the server ends its side too
connection.pipe(process.stdout);
