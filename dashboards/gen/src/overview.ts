// Mesh overview: the golden signals of all edges, and the map of who connects to whom.
import { build, graphPanel, heatPanel, quantile, rate, seriesPanel, statPanel, sum, tablePanel, units } from './model';
import { chosenRole, client, cluster, edgeLabels, local, namespace, role, workload } from './edges';

const attempts = rate(local('connection_attempts_total', client));
const failures = rate(local('connection_failures_total', client));
const connect = local('connect_duration_seconds_bucket', client);

/** Without a failure yet there is no series of failures: then the share is 0. */
const failureShare = `(${sum(failures, ...edgeLabels)} or ${sum(attempts, ...edgeLabels)} * 0) / (${sum(attempts, ...edgeLabels)} > 0)`;

// The map has an edge for each client and what it dialled, a service or else a peer, and one from each peer that nobody here observes.
const called = (expr: string, label: string) =>
  `label_replace(label_join(${expr}, "${label}", "/", "peer_namespace", "peer_workload"), "${label}", "$1", "${label}", "/(.*)")`;
const caller = (expr: string, label: string) =>
  `label_replace(label_join(${expr}, "${label}", "/", "local_namespace", "local_workload"), "${label}", "$1", "${label}", "/(.*)")`;
const outside = rate(local('connection_established_total', 'role="server"', 'peer_workload="external"'));
const edgesOut = caller(called(sum(attempts, 'local_namespace', 'local_workload', 'peer_namespace', 'peer_workload'), 'target'), 'source');
const edgesIn = caller(called(sum(outside, 'local_namespace', 'local_workload', 'peer_namespace', 'peer_workload'), 'source'), 'target');
const mapEdges = `label_join(${sum(`${edgesOut} or ${edgesIn}`, 'source', 'target')}, "id", " > ", "source", "target")`;
const mapNodes = sum(
  [
    // With the role, so that "or" leaves out none of a workload that is both.
    caller(sum(attempts, 'role', 'local_namespace', 'local_workload'), 'id'),
    caller(sum(outside, 'role', 'local_namespace', 'local_workload'), 'id'),
    called(sum(attempts, 'role', 'peer_namespace', 'peer_workload'), 'id'),
    called(sum(outside, 'role', 'peer_namespace', 'peer_workload'), 'id'),
  ].join(' or '),
  'id',
);

export const overview = build({
  uid: 'sidelight-overview',
  title: 'Sidelight / Mesh overview',
  description: 'Who connects to whom, how often, how fast, and what fails.',
  variables: [cluster, namespace, workload, role('client')],
  rows: [
    {
      title: 'Now',
      height: 4,
      lines: [
        [
          [statPanel({ title: 'Connects', description: 'Connects that clients began, per second.', unit: units.CountsPerSecond, expr: sum(attempts) }), 4],
          [
            statPanel({
              title: 'Failed',
              description: 'Share of the connects that failed before their handshake was done, for whatever reason.',
              unit: units.PercentUnit,
              expr: `(${sum(failures)} or vector(0)) / (${sum(attempts)} > 0)`,
              warn: 0.01,
              bad: 0.05,
              decimals: 2,
            }),
            4,
          ],
          [
            statPanel({
              title: 'Handshake, 99th percentile',
              description: 'Time from SYN to the end of the handshake. From 1 s on a SYN was lost: that is when the kernel sends the next one.',
              unit: units.Seconds,
              expr: quantile(0.99, connect),
              warn: 0.25,
              bad: 1,
            }),
            4,
          ],
          [
            statPanel({
              title: 'Open connections',
              description: 'Connections that are open now, at the ends that the role chooses.',
              unit: units.Short,
              expr: sum(local('connection_open', chosenRole)),
            }),
            4,
          ],
          [
            statPanel({
              title: 'Longest connect under way',
              description: 'How long the connect has hung that hangs longest, at the last sweep.',
              unit: units.Seconds,
              expr: `max(${local('connection_connecting_oldest_seconds', client)})`,
              warn: 3,
              bad: 30,
            }),
            4,
          ],
          [
            statPanel({
              title: 'Sent',
              description: 'Payload sent per second by the ends that the role chooses; what is resent counts once.',
              unit: units.BytesPerSecondIEC,
              expr: sum(rate(local('sent_bytes_total', chosenRole))),
            }),
            4,
          ],
        ],
      ],
    },
    {
      title: 'Golden signals',
      height: 8,
      lines: [
        [
          [
            seriesPanel({
              title: 'Connects by client',
              description: 'Traffic: connects that clients began, per second, by client workload.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(attempts, 'local_workload'), legend: '{{local_workload}}' }],
              stacked: true,
            }),
            12,
          ],
          [
            seriesPanel({
              title: 'Failed connects by reason',
              description: 'Errors: connects that failed before their handshake was done, per second. A reason appears with its first failure.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(failures, 'reason'), legend: '{{reason}}' }],
              stacked: true,
            }),
            12,
          ],
        ],
        [
          [
            seriesPanel({
              title: 'Handshake latency',
              description: 'Latency: time from SYN to the end of the handshake. Points are exemplars: connections, with their traces.',
              unit: units.Seconds,
              queries: [0.5, 0.9, 0.99].map((q) => ({ expr: quantile(q, connect), legend: `p${q * 100}`, exemplars: true })),
              log: true,
            }),
            12,
          ],
          [
            seriesPanel({
              title: 'Open and connecting',
              description: 'Saturation: connections that are open, at the ends that the role chooses, and connects that are under way.',
              unit: units.Short,
              queries: [
                { expr: sum(local('connection_open', chosenRole)), legend: 'open' },
                { expr: sum(local('connection_connecting', client)), legend: 'connecting' },
              ],
            }),
            12,
          ],
        ],
      ],
    },
    {
      title: 'Edges',
      height: 12,
      lines: [
        [
          [
            tablePanel({
              title: 'Golden signals by edge',
              description: 'One row for each client workload and what it connects to. Click a workload or a service to look at it.',
              unit: units.Short,
              columns: [
                { name: 'Namespace', label: 'local_namespace' },
                {
                  name: 'Workload',
                  label: 'local_workload',
                  link: '/d/sidelight-workload?${__url_time_range}&${datasource:queryparam}&${cluster:queryparam}&var-workload=${__value.raw}',
                },
                { name: 'Service namespace', label: 'service_namespace' },
                {
                  name: 'Service',
                  label: 'service',
                  link: '/d/sidelight-service?${__url_time_range}&${datasource:queryparam}&${cluster:queryparam}&var-service=${__value.raw}',
                },
                { name: 'Peer namespace', label: 'peer_namespace' },
                { name: 'Peer', label: 'peer_workload' },
                { name: 'Connects', expr: sum(attempts, ...edgeLabels), unit: units.CountsPerSecond },
                { name: 'Failed', expr: failureShare, unit: units.PercentUnit },
                { name: 'Handshake p50', expr: quantile(0.5, connect, ...edgeLabels), unit: units.Seconds },
                { name: 'Handshake p99', expr: quantile(0.99, connect, ...edgeLabels), unit: units.Seconds },
                { name: 'Open', expr: sum(local('connection_open', client), ...edgeLabels), unit: units.Short },
                { name: 'Sent', expr: sum(rate(local('sent_bytes_total', client)), ...edgeLabels), unit: units.BytesPerSecondIEC },
                { name: 'Received', expr: sum(rate(local('received_bytes_total', client)), ...edgeLabels), unit: units.BytesPerSecondIEC },
              ],
            }),
            24,
          ],
        ],
        [
          [
            graphPanel({
              title: 'Service map',
              description:
                'Connects per second: from client workloads to whom they connected, which is the endpoint that the mesh chose, and from peers that' +
                ' nobody observes to servers here.',
              unit: units.CountsPerSecond,
              edges: mapEdges,
              nodes: mapNodes,
            }),
            16,
          ],
          [
            heatPanel({
              title: 'Handshake latency of all edges',
              description: 'Connects by the time that their handshake took. Points are exemplars: connections, with their traces.',
              unit: units.Seconds,
              selector: connect,
            }),
            8,
          ],
        ],
      ],
    },
  ],
});
