// Mesh decisions: which endpoints were chosen, which are out of service, what limits and policies refused.
import { build, heatPanel, rate, seriesPanel, statPanel, sum, tablePanel, units, variable } from './model';
import { cluster, limitFill, node, on, quantiles, serving } from './edges';

const of = (metric: string, ...more: string[]) =>
  on(metric, 'service_namespace=~"$service_namespace"', 'service=~"$service"', ...more);
const endpoint = ['service_namespace', 'service', 'endpoint'];
const endpoints = (states: string) => of('sidelight_mesh_service_endpoints', `state=~"${states}"`);
const ofService = ['service_namespace', 'service'];
const picks = rate(of('sidelight_mesh_picks_total'));
const verdicts = (...more: string[]) => rate(on('sidelight_policy_verdicts_total', ...more));
const refusals = 'reason=~"denied|no_endpoint|circuit_open|rate_limited"';

export const decisions = build({
  uid: 'sidelight-decisions',
  title: 'Sidelight / Mesh decisions',
  description: 'What the mesh decided when connect() was called, or a SYN arrived. Everything here is by node: a node decides for itself.',
  variables: [
    cluster,
    node,
    variable({
      name: 'service_namespace',
      label: 'Service namespace',
      description: 'Of the services that endpoints were chosen for.',
      all: '.*',
      query: 'label_values(sidelight_mesh_picks_total{cluster=~"$cluster", instance=~"$instance"}, service_namespace)',
    }),
    variable({
      name: 'service',
      label: 'Service',
      description: 'Services that endpoints were chosen for.',
      all: '.+',
      query:
        'label_values(sidelight_mesh_picks_total{cluster=~"$cluster", instance=~"$instance", service_namespace=~"$service_namespace"}, service)',
    }),
  ],
  rows: [
    {
      title: 'Configuration',
      height: 4,
      lines: [
        [
          [
            statPanel({
              title: 'Nodes that refuse the newest input',
              description: 'They go on with the mesh before it. The log of the agent, and sidelight mesh validate, say what is wrong with it.',
              unit: units.Short,
              expr: `count(${on('sidelight_config_in_force')} == 0) or vector(0)`,
              bad: 1,
            }),
            6,
          ],
          [
            statPanel({
              title: 'Inputs read',
              description: 'What was read as a mesh per hour, accepted or refused.',
              unit: units.Short,
              expr: `sum(increase(${on('sidelight_config_inputs_total')}[1h]))`,
              decimals: 0,
            }),
            6,
          ],
          [
            statPanel({
              title: 'Oldest mesh in force',
              description: 'Time since the mesh in force was accepted, on the node where that is longest ago.',
              unit: units.Seconds,
              expr: `time() - min(${on('sidelight_config_last_accepted_timestamp_seconds')})`,
            }),
            6,
          ],
          [
            statPanel({
              title: 'Guarded namespaces',
              description: 'Network namespaces whose inbound connections are judged by policies, on all nodes.',
              unit: units.Short,
              expr: sum(on('sidelight_mesh_guarded_namespaces')),
            }),
            6,
          ],
        ],
      ],
    },
    {
      title: 'Balancing',
      height: 9,
      lines: [
        [
          [
            seriesPanel({
              title: 'Connections by endpoint',
              description: 'Connections per second that an endpoint was chosen for. One that had none yet has no series.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(picks, ...endpoint), legend: '{{service}} > {{endpoint}}' }],
              stacked: true,
            }),
            12,
          ],
          [
            seriesPanel({
              title: 'Share of the endpoint in its service',
              description: 'Of the connections of a service, those that the endpoint was chosen for.',
              unit: units.PercentUnit,
              queries: [
                {
                  expr: `${sum(picks, ...endpoint)} / on (service_namespace, service) group_left () (${sum(picks, 'service_namespace', 'service')} > 0)`,
                  legend: '{{service}} > {{endpoint}}',
                },
              ],
              max: 1,
            }),
            12,
          ],
        ],
        [
          [
            seriesPanel({
              title: 'Open by endpoint',
              description: 'Connections of the nodes that are open or connecting to the endpoint.',
              unit: units.Short,
              queries: [{ expr: sum(of('sidelight_mesh_endpoint_open'), ...endpoint), legend: '{{service}} > {{endpoint}}' }],
              stacked: true,
            }),
            12,
          ],
          [
            seriesPanel({
              title: 'Failed handshakes by endpoint',
              description: 'Connections to the endpoint whose handshake failed, as a share of those that it was chosen for.',
              unit: units.PercentUnit,
              queries: [
                {
                  expr: `${sum(rate(of('sidelight_mesh_endpoint_failures_total')), ...endpoint)} / (${sum(picks, ...endpoint)} > 0)`,
                  legend: '{{service}} > {{endpoint}}',
                },
              ],
              max: 1,
            }),
            12,
          ],
        ],
      ],
    },
    {
      title: 'Endpoints of services',
      height: 8,
      lines: [
        [
          [
            seriesPanel({
              title: 'Share of endpoints that serve',
              description:
                'Of the endpoints of a service that could serve a node those that get its connections, or would if others did not; on the node where that is least.' +
                ' What drains, and what never gets any from there, is in neither.',
              unit: units.PercentUnit,
              queries: [{ expr: `min by (service_namespace, service) (${serving(of, ...ofService)})`, legend: '{{service_namespace}} {{service}}' }],
              max: 1,
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Eligible endpoints',
              description: 'Endpoints that get new connections, on the node where they are fewest. At 0 the next connect there is refused.',
              unit: units.Short,
              queries: [{ expr: `min by (service_namespace, service) (${endpoints('eligible')})`, legend: '{{service_namespace}} {{service}}' }],
              stepped: true,
            }),
            8,
          ],
          [
            tablePanel({
              title: 'Services by the states of their endpoints',
              description: 'Eligible on the node where they are fewest, the others where they are most. Services that an endpoint was chosen for, and those that lack one.',
              unit: units.Short,
              columns: [
                { name: 'Service namespace', label: 'service_namespace' },
                { name: 'Service', label: 'service' },
                { name: 'Eligible', expr: `min by (service_namespace, service) (${endpoints('eligible')})` },
                ...['standby', 'draining', 'unhealthy', 'ejected', 'excluded'].map((state) => ({
                  name: state.charAt(0).toUpperCase() + state.slice(1),
                  expr: `max by (service_namespace, service) (${endpoints(state)})`,
                })),
              ],
            }),
            8,
          ],
        ],
      ],
    },
    {
      title: 'Ejections',
      height: 8,
      lines: [
        [
          [
            tablePanel({
              title: 'Endpoints out of service',
              description: 'Endpoints that get no connections now, by why, and on how many nodes.',
              unit: units.Short,
              columns: [
                { name: 'Service namespace', label: 'service_namespace' },
                { name: 'Service', label: 'service' },
                { name: 'Endpoint', label: 'endpoint' },
                { name: 'Cause', label: 'cause' },
                { name: 'Nodes', expr: sum(of('sidelight_mesh_endpoint_out'), ...endpoint, 'cause') },
              ],
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Ejections',
              description: 'How often endpoints were put out of service per hour: their connects failed (outlier), or they did not answer (health_check).',
              unit: units.Short,
              queries: [
                { expr: `sum by (service_namespace, service, endpoint, cause) (increase(${of('sidelight_mesh_ejections_total')}[1h]))`, legend: '{{service_namespace}} {{service}} > {{endpoint}} {{cause}}' },
              ],
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Ejections suppressed',
              description: 'How often per hour an endpoint stayed although it failed, because too many of its service were out already (maxEjectionPercent).',
              unit: units.Short,
              queries: [
                { expr: `sum by (service_namespace, service, endpoint) (increase(${of('sidelight_mesh_ejections_suppressed_total')}[1h]))`, legend: '{{service_namespace}} {{service}} > {{endpoint}}' },
              ],
            }),
            8,
          ],
        ],
      ],
    },
    {
      title: 'Limits',
      height: 8,
      lines: [
        [
          [
            seriesPanel({
              title: 'What counts against limits',
              description: 'Connections that are open or connecting, by limit and node.',
              unit: units.Short,
              queries: [
                { expr: sum(on('sidelight_mesh_limit_open'), 'limit', 'instance'), legend: '{{limit}}, {{instance}}' },
                { expr: sum(on('sidelight_mesh_limit_connecting'), 'limit', 'instance'), legend: '{{limit}} connecting, {{instance}}' },
              ],
            }),
            12,
          ],
          [
            seriesPanel({
              title: 'Fill of limits',
              description: 'The same as a share of the bound that it stands against, on the fullest node. What is not bounded has no line.',
              unit: units.PercentUnit,
              queries: [
                { expr: `max by (limit) (${limitFill(on, 'open')})`, legend: '{{limit}}' },
                { expr: `max by (limit) (${limitFill(on, 'connecting')})`, legend: '{{limit}} connecting' },
              ],
              max: 1,
            }),
            12,
          ],
        ],
        [
          [
            tablePanel({
              title: 'Bounds of limits',
              description: 'What each node lets pass, where it is lowest: open with those that connect, connecting, and those that begin in a second, or at once after a rest.',
              unit: units.Short,
              columns: [
                { name: 'Limit', label: 'limit' },
                { name: 'Open', expr: `min by (limit) (${on('sidelight_mesh_limit_max_open')})` },
                { name: 'Connecting', expr: `min by (limit) (${on('sidelight_mesh_limit_max_connecting')})` },
                { name: 'Per second', expr: `min by (limit) (${on('sidelight_mesh_limit_max_rate_per_second')})`, unit: units.CountsPerSecond },
                { name: 'Burst', expr: `min by (limit) (${on('sidelight_mesh_limit_burst')})` },
              ],
            }),
            12,
          ],
          [
            seriesPanel({
              title: 'Refused by limits',
              description: 'Connections per second that a limit refused, by what was at its bound: open, connecting or rate.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(rate(on('sidelight_mesh_limit_rejections_total')), 'limit', 'cause'), legend: '{{limit}} {{cause}}' }],
              stacked: true,
            }),
            12,
          ],
        ],
      ],
    },
    {
      title: 'Policies',
      height: 8,
      lines: [
        [
          [
            seriesPanel({
              title: 'Verdicts',
              description:
                'What policies said per second. Each end of a connection on a node is asked, and a revocation asks again. Unattended denies: there was' +
                ' no agent for longer than allowed.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(verdicts('dry_run="false"'), 'verdict'), legend: '{{verdict}}' }],
              stacked: true,
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Verdicts of dry runs',
              description: 'What policies with dryRun would have said, per second.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(verdicts('dry_run="true"'), 'policy', 'verdict'), legend: '{{policy}} {{verdict}}' }],
              stacked: true,
            }),
            8,
          ],
          [
            tablePanel({
              title: 'Rules that decide',
              description: 'Verdicts per second by rule. Without a policy no rule matched, which denies where a policy allows others.',
              unit: units.CountsPerSecond,
              columns: [
                { name: 'Policy', label: 'policy' },
                { name: 'Rule', label: 'rule' },
                { name: 'Verdict', label: 'verdict' },
                { name: 'Dry run', label: 'dry_run' },
                { name: 'Verdicts', expr: sum(verdicts(), 'policy', 'rule', 'verdict', 'dry_run'), unit: units.CountsPerSecond },
              ],
            }),
            8,
          ],
        ],
      ],
    },
    {
      title: 'Refused by the mesh',
      height: 8,
      lines: [
        [
          [
            seriesPanel({
              title: 'Refused connections by reason',
              description: 'Connects per second that the mesh refused, of the chosen services; what is no service has none and is in the next panel only.',
              unit: units.CountsPerSecond,
              queries: [
                { expr: sum(rate(of('sidelight_tcp_connection_failures_total', 'role="client"', refusals)), 'reason', 'service_namespace', 'service'), legend: '{{service_namespace}} {{service}} {{reason}}' },
              ],
              stacked: true,
            }),
            12,
          ],
          [
            seriesPanel({
              title: 'Refused, by the kernel',
              description: 'The same of all connections by the count of the kernel programs, which lacks nothing: at clients, and at servers.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(rate(on('sidelight_self_refused_total')), 'role'), legend: '{{role}}' }],
              stacked: true,
            }),
            12,
          ],
        ],
      ],
    },
    {
      title: 'Time to decide',
      height: 8,
      lines: [
        [
          [
            seriesPanel({
              title: 'Time to decide',
              description:
                'What the mesh takes of a connect() before its SYN, whether it lets it through or refuses it. A machine without time to spare shows in the upper' +
                ' quantiles. Points are exemplars: connections, with their traces.',
              unit: units.Seconds,
              queries: quantiles(on('sidelight_mesh_decision_duration_seconds_bucket')),
              log: true,
            }),
            12,
          ],
          [
            heatPanel({
              title: 'Times to decide',
              description: 'How many connects were decided in which time.',
              unit: units.Seconds,
              selector: on('sidelight_mesh_decision_duration_seconds_bucket'),
            }),
            12,
          ],
        ],
      ],
    },
  ],
});
