// Mesh overview: the golden signals of all edges, and the map of who connects to whom.
import { build, graphPanel, heatPanel, quantile, rate, seriesPanel, statPanel, sum, tablePanel, units } from './model';
import { chosenRole, client, cluster, connects, edgeLabels, failedShare, handshakeP99, local, namespace, quantiles, role, server, workload } from './edges';

const { attempts, failures, handshakes } = connects;

/** Without a failure yet there is no series of failures: then the share is 0. */
const failureShare = `(${sum(failures, ...edgeLabels)} or ${sum(attempts, ...edgeLabels)} * 0) / (${sum(attempts, ...edgeLabels)} > 0)`;

// The map has an edge for each client and where its connects led, which is the endpoint that the mesh chose and not the service that was dialled, and one
// for each server and who connected to it. Of two observed workloads both ends tell: they are one edge then, with what is more. Else one end does, as of who
// is not observed, or not everywhere: external, a group of peers, a workload of another node.
const named = (expr: string, side: 'local' | 'peer', label: string) =>
  `label_replace(label_join(${expr}, "${label}", "/", "${side}_namespace", "${side}_workload"), "${label}", "$1", "${label}", "/(.*)")`;
const ends = ['local_namespace', 'local_workload', 'peer_namespace', 'peer_workload'];
const mapped = (expr: string, from: 'local' | 'peer', to: 'local' | 'peer') =>
  sum(named(named(sum(expr, 'role', ...ends), from, 'source'), to, 'target'), 'role', 'source', 'target');
const mapEnds =
  `max by (source, target) (${mapped(attempts, 'local', 'peer')}` +
  ` or ${mapped(rate(local('connection_established_total', server)), 'peer', 'local')})`;
const mapEdges = `label_join(${mapEnds}, "id", " > ", "source", "target")`;
const node = (side: 'source' | 'target') => `label_replace(${sum(mapEnds, side)}, "id", "$1", "${side}", "(.*)")`;
const mapNodes = sum(`${node('source')} or ${node('target')}`, 'id');

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
            statPanel(failedShare('Share of the connects that failed before their handshake was done, for whatever reason.', failures, attempts)),
            4,
          ],
          [
            statPanel(
              handshakeP99('Time from SYN to the end of the handshake. From 1 s on a SYN was lost: that is when the kernel sends the next one.', handshakes),
            ),
            4,
          ],
          [
            statPanel({
              title: 'Open connections',
              description: 'Connections that are open now, at the ends that the role chooses: of one between two observed workloads each end has one.',
              unit: units.Short,
              expr: sum(local('connection_open', chosenRole), 'role'),
              legend: '{{role}}',
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
              expr: sum(rate(local('sent_bytes_total', chosenRole)), 'role'),
              legend: '{{role}}',
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
              queries: [{ expr: sum(attempts, 'local_namespace', 'local_workload'), legend: '{{local_namespace}} {{local_workload}}' }],
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
              queries: quantiles(handshakes),
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
                { expr: sum(local('connection_open', chosenRole), 'role'), legend: 'open, {{role}}' },
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
                  link: '/d/sidelight-service?${__url_time_range}&${datasource:queryparam}&${cluster:queryparam}&var-service_namespace=${__data.fields["Service namespace"]}&var-service=${__value.raw}',
                },
                { name: 'Peer namespace', label: 'peer_namespace' },
                { name: 'Peer', label: 'peer_workload' },
                { name: 'Connects', expr: sum(attempts, ...edgeLabels), unit: units.CountsPerSecond },
                { name: 'Failed', expr: failureShare, unit: units.PercentUnit },
                { name: 'Handshake p50', expr: quantile(0.5, handshakes, ...edgeLabels), unit: units.Seconds },
                { name: 'Handshake p99', expr: quantile(0.99, handshakes, ...edgeLabels), unit: units.Seconds },
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
                'Connects per second: from client workloads to whom they connected, which is the endpoint that the mesh chose, and from whoever' +
                ' connected to servers here: peers that nobody observes, groups of them, and what is outside.',
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
              selector: handshakes,
            }),
            8,
          ],
        ],
      ],
    },
  ],
});
