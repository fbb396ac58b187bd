// Connections: the phases of a connection, why it fails, and what the network does to it.
import { build, heatPanel, quantile, rate, seriesPanel, statPanel, sum, tablePanel, units } from './model';
import {
  chosenRole, client, cluster, connects, edgeLabels, edgeLegend, local, logVariables, namespace, quantiles, retransmits, role, workload, workloadSignals,
} from './edges';

const { attempts, failures, handshakes, firstBytes } = connects;
const oldest = local('connection_connecting_oldest_seconds', client);
const edgeColumns = [
  { name: 'Namespace', label: 'local_namespace' },
  { name: 'Workload', label: 'local_workload' },
  { name: 'Service namespace', label: 'service_namespace' },
  { name: 'Service', label: 'service' },
  { name: 'Peer namespace', label: 'peer_namespace' },
  { name: 'Peer', label: 'peer_workload' },
];
const localLabels = ['local_namespace', 'local_workload'];
const localLegend = '{{local_namespace}} {{local_workload}}';
/** Without a handshake there is no number, which is no slow one. */
const slowest = `topk(20, ${quantile(0.99, handshakes, ...edgeLabels)} >= 0)`;
const synShare = (...by: string[]) => `${sum(rate(local('syn_retransmits_total', client)), ...by)} / (${sum(attempts, ...by)} > 0)`;

export const connections = build({
  uid: 'sidelight-connections',
  title: 'Sidelight / Connections',
  description: 'From connect() to the last byte: phases, failures, retransmits, round-trip times, and connects that hang.',
  variables: [cluster, namespace, workload, role('client'), ...logVariables],
  rows: [
    {
      title: 'Phases of a connect',
      height: 8,
      lines: [
        [
          [
            seriesPanel({
              title: 'Phases, median',
              description:
                'Of clients: the handshake, then the wait for the first byte from the server. The time for a decision of the mesh is in access log' +
                ' and spans only (sidelight.decision_ns).',
              unit: units.Seconds,
              queries: [
                { expr: quantile(0.5, handshakes), legend: 'handshake', exemplars: true },
                { expr: quantile(0.5, firstBytes), legend: 'first byte', exemplars: true },
              ],
              log: true,
            }),
            12,
          ],
          [
            seriesPanel({
              title: 'Phases, 99th percentile',
              description: 'The same for the slowest of a hundred. A handshake of 1 s, 3 s or 7 s is one, two or three lost SYNs.',
              unit: units.Seconds,
              queries: [
                { expr: quantile(0.99, handshakes), legend: 'handshake', exemplars: true },
                { expr: quantile(0.99, firstBytes), legend: 'first byte', exemplars: true },
              ],
              log: true,
            }),
            12,
          ],
        ],
        [
          [
            heatPanel({
              title: 'Handshake latency',
              description: 'Connects by the time from SYN to the end of the handshake. Points are exemplars: connections, with their traces.',
              unit: units.Seconds,
              selector: handshakes,
            }),
            12,
          ],
          [
            heatPanel({
              title: 'Wait for the first byte',
              description: 'Connections that ended, by the time from the end of the handshake to the first byte from the server.',
              unit: units.Seconds,
              selector: firstBytes,
            }),
            12,
          ],
        ],
      ],
    },
    {
      title: 'Failures',
      height: 8,
      lines: [
        [
          [
            seriesPanel({
              title: 'Failed connects by reason',
              description: 'Connects that failed before their handshake was done, per second. A reason appears with its first failure.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(failures, 'reason'), legend: '{{reason}}' }],
              stacked: true,
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Connections that did not end well',
              description: 'Connections that ended after their handshake and not by an orderly close, per second.',
              unit: units.CountsPerSecond,
              queries: [
                { expr: sum(rate(local('connection_closed_total', chosenRole, 'reason!="ok"')), 'role', 'reason'), legend: '{{role}} {{reason}}' },
              ],
              stacked: true,
            }),
            8,
          ],
          [
            tablePanel({
              title: 'Where connects fail',
              description: 'Failed connects per second by edge and reason.',
              unit: units.CountsPerSecond,
              columns: [
                ...edgeColumns,
                { name: 'Reason', label: 'reason' },
                { name: 'Failed', expr: `topk(50, ${sum(failures, ...edgeLabels, 'reason')} > 0)`, unit: units.CountsPerSecond },
              ],
            }),
            8,
          ],
        ],
      ],
    },
    {
      title: 'Connects that hang',
      height: 8,
      lines: [
        [
          [
            seriesPanel({
              title: 'Longest connect under way, by edge',
              description: 'How long the connect has hung that hangs longest, at the last sweep. It is seen while it hangs, not only when it has failed.',
              unit: units.Seconds,
              queries: [{ expr: `max by (${edgeLabels.join(', ')}) (${oldest})`, legend: edgeLegend }],
            }),
            12,
          ],
          [
            seriesPanel({
              title: 'Connects under way',
              description: 'Connections whose handshake is under way now, by client workload.',
              unit: units.Short,
              queries: [{ expr: sum(local('connection_connecting', client), ...localLabels), legend: localLegend }],
              stacked: true,
            }),
            6,
          ],
          [
            statPanel({
              title: 'Longest now',
              description: 'From 3 s on two SYNs were not answered, from 31 s on five.',
              unit: units.Seconds,
              expr: `max(${oldest})`,
              warn: 3,
              bad: 30,
            }),
            6,
          ],
        ],
      ],
    },
    {
      title: 'Network',
      height: 8,
      lines: [
        [
          [
            seriesPanel({
              title: 'Retransmits',
              description: 'Segments sent again per second, at the ends that the role chooses: during the handshake, and later.',
              unit: units.CountsPerSecond,
              queries: [
                { expr: sum(rate(local('syn_retransmits_total', chosenRole)), 'role'), legend: '{{role}} SYN' },
                { expr: retransmits('role'), legend: '{{role}} later' },
              ],
              stacked: true,
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'SYNs sent again per connect',
              description: 'Of clients. Each costs the connect a second at least.',
              unit: units.PercentUnit,
              queries: [{ expr: synShare(...localLabels), legend: localLegend }],
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Retransmits per megabyte sent',
              description:
                'Segments sent again after the handshake for each million bytes of payload, which are some 700 full segments: 7 is one percent of these. Who' +
                ' sends small segments sends more of them for a megabyte, so it is less in truth.',
              unit: units.Short,
              queries: [
                {
                  expr: `${retransmits('role', ...localLabels)} / (${sum(rate(local('sent_bytes_total', chosenRole)), 'role', ...localLabels)} / 1e6 > 0)`,
                  legend: `{{role}} ${localLegend}`,
                },
              ],
            }),
            8,
          ],
        ],
        [
          [
            seriesPanel({
              title: 'Round-trip time',
              description: 'Smoothed round-trip time at the end of connections, at the ends that the role chooses.',
              unit: units.Seconds,
              queries: quantiles(local('rtt_seconds_bucket', chosenRole), '{{role}} ', ['role']),
              log: true,
            }),
            8,
          ],
          [
            heatPanel({
              title: 'Round-trip times',
              description: 'Connections that ended, by their smoothed round-trip time then. With the role All each of two observed ends counts.',
              unit: units.Seconds,
              selector: local('rtt_seconds_bucket', chosenRole),
            }),
            8,
          ],
          [
            tablePanel({
              title: 'Slowest handshakes by edge',
              description: 'Edges by the 99th percentile of their handshake, and whether SYNs were sent again.',
              unit: units.Short,
              columns: [
                ...edgeColumns,
                { name: 'Handshake p99', expr: slowest, unit: units.Seconds },
                { name: 'SYNs sent again per connect', expr: `${synShare(...edgeLabels)} and ${slowest}`, unit: units.PercentUnit },
              ],
            }),
            8,
          ],
        ],
      ],
    },
    {
      title: 'Account',
      height: 8,
      lines: [
        [
          [
            seriesPanel({
              title: 'Began and ended',
              description: 'Connections per second by step, at the ends that the role chooses. Established and adopted make up closed and open.',
              unit: units.CountsPerSecond,
              queries: [
                { expr: sum(attempts), legend: 'client attempted' },
                ...['established', 'adopted', 'closed'].map((step) => ({
                  expr: sum(rate(local(`connection_${step}_total`, chosenRole)), 'role'),
                  legend: `{{role}} ${step}`,
                })),
              ],
            }),
            12,
          ],
          [
            seriesPanel({
              title: 'Life of connections',
              description: 'Of those that ended, from connect() or accept to the end.',
              unit: units.Seconds,
              queries: quantiles(local('connection_duration_seconds_bucket', chosenRole), '{{role}} ', ['role']),
              log: true,
            }),
            12,
          ],
        ],
      ],
    },
    workloadSignals('Connections, one line for each that ended.'),
  ],
});
