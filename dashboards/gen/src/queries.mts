// Parses the queries of the log and trace panels, for which there is no parser among the modules of the Go tests. The grammars are those of
// Grafana's own query editors.
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { parser as logql } from '@grafana/lezer-logql';
import { parser as traceql } from '@grafana/lezer-traceql';

interface Target {
  datasource?: { type?: string };
  expr?: string;
  query?: string;
}

interface Panel {
  title?: string;
  panels?: Panel[];
  targets?: Target[];
}

const directory = process.argv[2];
if (directory === undefined) throw new Error('usage: queries.mjs DIRECTORY');

let parsed = 0;
function check(where: string, language: string, parser: typeof logql | typeof traceql, query: string) {
  parsed++;
  parser.parse(query).iterate({
    enter(node) {
      if (!node.type.isError) return;
      console.error(`${where}: no ${language} from character ${node.from} on: ${query}`);
      process.exitCode = 1;
    },
  });
}

function walk(file: string, panels: Panel[]) {
  for (const panel of panels) {
    walk(file, panel.panels ?? []);
    for (const t of panel.targets ?? []) {
      const where = `${file}, ${panel.title}`;
      if (t.datasource?.type === 'loki') check(where, 'LogQL', logql, t.expr ?? '');
      if (t.datasource?.type === 'tempo') check(where, 'TraceQL', traceql, t.query ?? '');
    }
  }
}

for (const file of readdirSync(directory).filter((f) => f.endsWith('.json'))) {
  walk(file, JSON.parse(readFileSync(join(directory, file), 'utf8')).panels);
}
if (parsed === 0) throw new Error('no queries found');
console.log(`${parsed} queries of log and trace panels parsed`);
