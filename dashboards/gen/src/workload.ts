// Workload: what it opens, what it accepts, and how its connections fare.
import { build, quantile, rate, seriesPanel, statPanel, sum, tablePanel, units } from './model';
import { chosenRole, cluster, connects, failedShare, local, logVariables, namespace, quantiles, retransmits, role, server, workload, workloadSignals } from './edges';

const { attempts, failures, handshakes } = connects;
const accepted = rate(local('connection_established_total', server));
const peer = ['peer_namespace', 'peer_workload'];
const peerLegend = '{{peer_namespace}} {{peer_workload}}';

export const workloads = build({
  uid: 'sidelight-workload',
  title: 'Sidelight / Workload',
  description: 'A workload: the connections that it opens and accepts, and how they end.',
  variables: [cluster, namespace, workload, role('all'), ...logVariables],
  rows: [
    {
      title: 'Now',
      height: 4,
      lines: [
        [
          [statPanel({ title: 'Connects', description: 'Connects that it began, per second.', unit: units.CountsPerSecond, expr: sum(attempts) }), 4],
          [
            statPanel(failedShare('Share of them that failed before their handshake was done.', failures, attempts)),
            4,
          ],
          [statPanel({ title: 'Accepts', description: 'Connections that it accepted, per second.', unit: units.CountsPerSecond, expr: sum(accepted) }), 4],
          [
            statPanel({
              title: 'Open',
              description: 'Connections that are open now, at the ends that the role chooses.',
              unit: units.Short,
              expr: sum(local('connection_open', chosenRole), 'role'),
              legend: '{{role}}',
            }),
            4,
          ],
          [
            statPanel({
              title: 'Sent',
              description: 'Payload per second, of the ends that the role chooses.',
              unit: units.BytesPerSecondIEC,
              expr: sum(rate(local('sent_bytes_total', chosenRole)), 'role'),
              legend: '{{role}}',
            }),
            4,
          ],
          [
            statPanel({
              title: 'Received',
              description: 'Payload per second, of the ends that the role chooses.',
              unit: units.BytesPerSecondIEC,
              expr: sum(rate(local('received_bytes_total', chosenRole)), 'role'),
              legend: '{{role}}',
            }),
            4,
          ],
        ],
      ],
    },
    {
      title: 'Outbound',
      height: 8,
      lines: [
        [
          [
            seriesPanel({
              title: 'Connects by peer',
              description: 'Connects that it began, per second, by whom they led to.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(attempts, ...peer), legend: peerLegend }],
              stacked: true,
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Failed connects by reason',
              description: 'Connects that failed before their handshake was done, per second.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(failures, 'reason'), legend: '{{reason}}' }],
              stacked: true,
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Handshake latency by peer, 99th percentile',
              description: 'Time from SYN to the end of the handshake. Points are exemplars: connections, with their traces.',
              unit: units.Seconds,
              queries: [
                { expr: quantile(0.99, handshakes, ...peer), legend: peerLegend, exemplars: true },
              ],
              log: true,
            }),
            8,
          ],
        ],
      ],
    },
    {
      title: 'Inbound',
      height: 8,
      lines: [
        [
          [
            seriesPanel({
              title: 'Accepts by peer',
              description: 'Connections that it accepted, per second, by who connected.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(accepted, ...peer), legend: peerLegend }],
              stacked: true,
            }),
            12,
          ],
          [
            seriesPanel({
              title: 'Denied at its side',
              description: 'Connections per second that policies denied when their SYN arrived. The client sees a refused connection.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(rate(local('connection_failures_total', server)), ...peer), legend: peerLegend }],
              stacked: true,
            }),
            12,
          ],
        ],
      ],
    },
    {
      title: 'Connections',
      height: 8,
      lines: [
        [
          [
            seriesPanel({
              title: 'Ends by reason',
              description: 'Connections that ended after their handshake, per second, at the ends that the role chooses.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(rate(local('connection_closed_total', chosenRole)), 'role', 'reason'), legend: '{{role}} {{reason}}' }],
              stacked: true,
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Life of connections',
              description: 'Of those that ended, from connect() or accept to the end.',
              unit: units.Seconds,
              queries: quantiles(local('connection_duration_seconds_bucket', chosenRole), '{{role}} ', ['role'], [0.5, 0.99]),
              log: true,
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Open connections by peer',
              description: 'Connections that are open now, at the ends that the role chooses.',
              unit: units.Short,
              queries: [{ expr: sum(local('connection_open', chosenRole), 'role', ...peer), legend: `{{role}} ${peerLegend}` }],
              stacked: true,
            }),
            8,
          ],
        ],
        [
          [
            seriesPanel({
              title: 'Payload sent by peer',
              description: 'Payload per second, each byte once, also of connections that are still open.',
              unit: units.BytesPerSecondIEC,
              queries: [{ expr: sum(rate(local('sent_bytes_total', chosenRole)), 'role', ...peer), legend: `{{role}} ${peerLegend}` }],
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Payload received by peer',
              description: 'Payload per second, each byte once, also of connections that are still open.',
              unit: units.BytesPerSecondIEC,
              queries: [{ expr: sum(rate(local('received_bytes_total', chosenRole)), 'role', ...peer), legend: `{{role}} ${peerLegend}` }],
            }),
            8,
          ],
          [
            tablePanel({
              title: 'Round-trip time and retransmits by peer',
              description: 'Round-trip times are those at the end of connections; the retransmits are segments per second, without those of handshakes.',
              unit: units.Short,
              columns: [
                { name: 'Role', label: 'role' },
                { name: 'Peer namespace', label: 'peer_namespace' },
                { name: 'Peer', label: 'peer_workload' },
                { name: 'RTT p50', expr: quantile(0.5, local('rtt_seconds_bucket', chosenRole), 'role', ...peer), unit: units.Seconds },
                { name: 'RTT p99', expr: quantile(0.99, local('rtt_seconds_bucket', chosenRole), 'role', ...peer), unit: units.Seconds },
                { name: 'Retransmits', expr: retransmits('role', ...peer), unit: units.CountsPerSecond },
              ],
            }),
            8,
          ],
        ],
      ],
    },
    workloadSignals('Connections of the workload, one line for each that ended.'),
  ],
});
