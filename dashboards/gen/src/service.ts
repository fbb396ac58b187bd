// Service: what its clients on the observed nodes see of a service of the mesh, and what its endpoints get.
import { build, rate, seriesPanel, statPanel, sum, tablePanel, units, variable } from './model';
import { client, cluster, failedShare, handshakeP99, logVariables, quantiles, signals } from './edges';

const of = (metric: string, ...more: string[]) =>
  `${metric}{${['cluster=~"$cluster"', 'service_namespace="$service_namespace"', 'service="$service"', ...more].join(', ')}}`;
const attempts = rate(of('sidelight_tcp_connection_attempts_total', client));
const failures = rate(of('sidelight_tcp_connection_failures_total', client));
const connect = of('sidelight_tcp_connect_duration_seconds_bucket', client);
const firstByte = of('sidelight_tcp_first_byte_duration_seconds_bucket', client);
const picks = rate(of('sidelight_mesh_picks_total'));
const limit = (metric: string) => `${metric}{cluster=~"$cluster", limit="service $service_namespace/$service"}`;

export const service = build({
  uid: 'sidelight-service',
  title: 'Sidelight / Service',
  description: 'A service of the mesh, as its clients see it: what they dialled, not where it led.',
  variables: [
    cluster,
    variable({
      name: 'service_namespace',
      label: 'Service namespace',
      description: 'Of the services that were dialled.',
      single: true,
      query: 'label_values(sidelight_tcp_connection_attempts_total{cluster=~"$cluster", service!=""}, service_namespace)',
    }),
    variable({
      name: 'service',
      label: 'Service',
      description: 'A service that was dialled.',
      single: true,
      query: 'label_values(sidelight_tcp_connection_attempts_total{cluster=~"$cluster", service_namespace="$service_namespace"}, service)',
    }),
    ...logVariables,
  ],
  rows: [
    {
      title: 'Now',
      height: 4,
      lines: [
        [
          [statPanel({ title: 'Connects', description: 'Connects to the service, per second.', unit: units.CountsPerSecond, expr: sum(attempts) }), 6],
          [
            statPanel(failedShare('Share of them that failed or were refused by the mesh.', failures, attempts)),
            6,
          ],
          [
            statPanel(handshakeP99('Time from SYN to the end of the handshake.', connect)),
            6,
          ],
          [
            statPanel({
              title: 'Endpoints out of service',
              description: 'Of the endpoints, seen by all nodes: those that failed or do not answer, and get no connections. A node counts its own.',
              unit: units.Short,
              expr: `count(max by (endpoint) (${of('sidelight_mesh_endpoint_out')})) or vector(0)`,
              bad: 1,
            }),
            6,
          ],
        ],
      ],
    },
    {
      title: 'Clients',
      height: 8,
      lines: [
        [
          [
            seriesPanel({
              title: 'Connects by client',
              description: 'Connects to the service per second, by client workload.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(attempts, 'local_namespace', 'local_workload'), legend: '{{local_namespace}} {{local_workload}}' }],
              stacked: true,
            }),
            12,
          ],
          [
            seriesPanel({
              title: 'Failed connects by reason',
              description: 'Of no_endpoint, circuit_open, rate_limited and denied no SYN left; the others failed on their way to an endpoint.',
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
              description: 'Time from SYN to the end of the handshake. Points are exemplars: connections, with their traces.',
              unit: units.Seconds,
              queries: quantiles(connect),
              log: true,
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'First byte',
              description: 'Time from the end of the handshake to the first byte from the service, of connections that ended.',
              unit: units.Seconds,
              queries: quantiles(firstByte),
              log: true,
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Payload',
              description: 'Payload per second that clients sent to the service and received from it.',
              unit: units.BytesPerSecondIEC,
              queries: [
                { expr: sum(rate(of('sidelight_tcp_sent_bytes_total', client))), legend: 'sent' },
                { expr: sum(rate(of('sidelight_tcp_received_bytes_total', client))), legend: 'received' },
              ],
            }),
            8,
          ],
        ],
      ],
    },
    {
      title: 'Endpoints',
      height: 9,
      lines: [
        [
          [
            seriesPanel({
              title: 'Share of connections by endpoint',
              description: 'Which endpoints were chosen, as a share of all choices. Weights and localities should show here.',
              unit: units.PercentUnit,
              queries: [{ expr: `${sum(picks, 'endpoint')} / scalar(${sum(picks)} > 0)`, legend: '{{endpoint}}' }],
              stacked: true,
              max: 1,
            }),
            12,
          ],
          [
            tablePanel({
              title: 'Endpoints',
              description: 'What each endpoint gets from the observed nodes, and what of it fails.',
              unit: units.Short,
              columns: [
                { name: 'Endpoint', label: 'endpoint' },
                { name: 'Chosen', expr: sum(picks, 'endpoint'), unit: units.CountsPerSecond },
                { name: 'Handshake failed', expr: sum(rate(of('sidelight_mesh_endpoint_failures_total')), 'endpoint'), unit: units.CountsPerSecond },
                { name: 'Open', expr: sum(of('sidelight_mesh_endpoint_open'), 'endpoint') },
                { name: 'Nodes that have it out', expr: sum(of('sidelight_mesh_endpoint_out'), 'endpoint') },
              ],
            }),
            12,
          ],
        ],
        [
          [
            seriesPanel({
              title: 'Endpoints by state',
              description:
                'Endpoints that get new connections on the node where they are fewest, and those in other states where they are most: on standby while others serve,' +
                ' draining, unhealthy, ejected, or excluded, which never get any from there.',
              unit: units.Short,
              queries: [
                { expr: `min(${of('sidelight_mesh_service_endpoints', 'state="eligible"')})`, legend: 'eligible' },
                { expr: `max by (state) (${of('sidelight_mesh_service_endpoints', 'state!="eligible"')})`, legend: '{{state}}' },
              ],
              stepped: true,
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Open and connecting against the limit',
              description: 'What counts against the limits of the service, by node, and what is allowed; only services with limits have it.',
              unit: units.Short,
              queries: [
                { expr: sum(limit('sidelight_mesh_limit_open'), 'instance'), legend: 'open or connecting, {{instance}}' },
                { expr: sum(limit('sidelight_mesh_limit_connecting'), 'instance'), legend: 'connecting, {{instance}}' },
                { expr: `min(${limit('sidelight_mesh_limit_max_open')})`, legend: 'limit' },
                { expr: `min(${limit('sidelight_mesh_limit_max_connecting')})`, legend: 'limit of connecting' },
              ],
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Refused by a limit',
              description: 'Connects per second that a limit of the service refused, by what was at its bound.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(rate(limit('sidelight_mesh_limit_rejections_total')), 'cause'), legend: '{{cause}}' }],
              stacked: true,
            }),
            8,
          ],
        ],
      ],
    },
    signals(
      'Connections to the service, one line for each that ended.',
      { stream: 'service_name=~".+"', filter: '| sidelight_service=`$service_namespace/$service`' },
      '"sidelight.service":="$service_namespace/$service"',
      '{ span.sidelight.service = "$service_namespace/$service" && (status = error || duration > 1s) }',
    ),
  ],
});
