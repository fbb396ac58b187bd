// Mesh decisions: which endpoints were chosen, which are out of service, what limits and policies refused.
import { build, rate, seriesPanel, statPanel, sum, tablePanel, units, variable } from './model';
import { cluster, node, on } from './edges';

const of = (metric: string, ...more: string[]) =>
  on(metric, 'service_namespace=~"$service_namespace"', 'service=~"$service"', ...more);
const endpoint = ['service_namespace', 'service', 'endpoint'];
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
              description: 'Connections that are open or connecting, by limit and node. The limits themselves are no metrics: the mesh file has them.',
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
  ],
});
