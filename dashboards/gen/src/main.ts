// Writes the dashboards into a directory, or with --check tells which of those that are there are not what it would write.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { connections } from './connections';
import { decisions } from './decisions';
import { overview } from './overview';
import { service } from './service';
import { sidelight } from './sidelight';
import { workloads } from './workload';

const dashboards = { overview, service, workload: workloads, connections, decisions, sidelight };

const args = process.argv.slice(2);
const check = args[0] === '--check';
const directory = args[check ? 1 : 0];
if (directory === undefined) throw new Error('usage: main.js [--check] DIRECTORY');

let stale = 0;
for (const [name, dashboard] of Object.entries(dashboards)) {
  const path = join(directory, `${name}.json`);
  const text = JSON.stringify(dashboard, null, 2) + '\n';
  if (!check) {
    writeFileSync(path, text);
  } else if (!existsSync(path) || readFileSync(path, 'utf8') !== text) {
    console.error(`${path} is not what the generator makes: run make dashboards, and commit`);
    stale++;
  }
}
process.exitCode = stale ? 1 : 0;
