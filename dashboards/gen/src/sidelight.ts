// Sidelight itself: does its account close, what does it cost, and what is lost or waits on the way out.
import * as dashboard from '@grafana/grafana-foundation-sdk/dashboard';
import { build, rate, seriesPanel, statPanel, sum, tablePanel, units } from './model';
import { cluster, node, on } from './edges';

const kernel = (role: string, step: string) => on('sidelight_self_kernel_connections_total', `role="${role}"`, `step="${step}"`);

const rungs: dashboard.ValueMapping[] = [
  {
    type: dashboard.MappingType.ValueToText,
    options: Object.fromEntries(['full', 'spans_off', 'log_sampling', 'closes_only', 'counters_only'].map((text, i) => [String(i), { text, index: i }])),
  },
];

export const sidelight = build({
  uid: 'sidelight-self',
  title: 'Sidelight / Sidelight itself',
  description: 'The agents: account, budget, cost, queues, and what was dropped.',
  variables: [cluster, node],
  rows: [
    {
      title: 'Now',
      height: 4,
      lines: [
        [
          [
            statPanel({
              title: 'Unaccounted',
              description: 'What the kernel counted and nobody saw, and what is missing on a way out. It must be 0; losses that were counted are not in it.',
              unit: units.Short,
              expr: `max(${on('sidelight_accounting_unaccounted')})`,
              bad: 1,
              decimals: 0,
            }),
            4,
          ],
          [
            statPanel({
              title: 'Agents',
              description: 'Agents that are scraped.',
              unit: units.Short,
              expr: `count(${on('sidelight_build_info')})`,
            }),
            4,
          ],
          [
            statPanel({
              title: 'Lowest rung',
              description: 'The rung of the overhead budget on the node that tells least. On each rung sums and account are exact.',
              unit: units.NoUnit,
              expr: `max(${on('sidelight_budget_rung')})`,
              warn: 1,
              bad: 3,
              mappings: rungs,
            }),
            4,
          ],
          [
            statPanel({
              title: 'CPU of the agent that takes most',
              description: 'Share of all CPUs of its node, with its kernel programs, at its last measurement.',
              unit: units.PercentUnit,
              expr: `max(sum by (instance) (${on('sidelight_budget_cpu_ratio')}))`,
              decimals: 2,
            }),
            4,
          ],
          [
            statPanel({
              title: 'Dropped',
              description: 'Log records, spans, data points and events that were lost in the last hour, at whatever stage.',
              unit: units.Short,
              expr: `sum(increase(${on('sidelight_dropped_total')}[1h]))`,
              warn: 1,
              decimals: 0,
            }),
            4,
          ],
          [
            statPanel({
              title: 'Waiting for backends',
              description: 'Log records, spans and data points in the queues of exporters.',
              unit: units.Short,
              expr: sum(on('sidelight_self_export_queue')),
            }),
            4,
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
              title: 'Unaccounted by node',
              description: 'Must be 0. Without a line the agent could not read its account, as on a node without time to spare.',
              unit: units.Short,
              queries: [{ expr: `max by (instance) (${on('sidelight_accounting_unaccounted')})`, legend: '{{instance}}' }],
              stepped: true,
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Connections, by the kernel',
              description: 'What the kernel programs counted, per second: attempted is established, failed and connecting.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(rate(on('sidelight_self_kernel_connections_total')), 'role', 'step'), legend: '{{role}} {{step}}' }],
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Connections that are followed',
              description: 'Open or connecting, by the count of the kernel.',
              unit: units.Short,
              queries: [{ expr: sum(on('sidelight_self_connections_followed'), 'instance'), legend: '{{instance}}' }],
              stacked: true,
            }),
            8,
          ],
        ],
        [
          [
            seriesPanel({
              title: 'Log lines and records for each connection that ended',
              description: 'Access log lines and exported log records per connection that ended; 1 while nothing is sampled, lost or waiting.',
              unit: units.PercentUnit,
              queries: [
                {
                  expr: `${sum(rate(on('sidelight_self_access_log_lines_total')))} / (${sum(rate(on('sidelight_self_events_decoded_total', 'kind="close"')))} > 0)`,
                  legend: 'access log lines',
                },
                {
                  expr: `${sum(rate(on('sidelight_self_exported_total', 'signal="logs"')))} / (${sum(rate(on('sidelight_self_events_decoded_total', 'kind="close"')))} > 0)`,
                  legend: 'exported log records',
                },
              ],
            }),
            12,
          ],
          [
            seriesPanel({
              title: 'Clients: attempted less established less failed',
              description: 'Connects that are under way, by the counts of the kernel. A line that only grows would be a hole in the account.',
              unit: units.Short,
              queries: [
                {
                  expr: `${sum(kernel('client', 'attempted'), 'instance')} - ${sum(kernel('client', 'established'), 'instance')} - ${sum(kernel('client', 'failed'), 'instance')}`,
                  legend: '{{instance}}',
                },
              ],
            }),
            12,
          ],
        ],
      ],
    },
    {
      title: 'Budget and cost',
      height: 8,
      lines: [
        [
          [
            seriesPanel({
              title: 'Rung',
              description: '0 full, 1 spans off, 2 log sampling, 3 close events only, 4 counters only.',
              unit: units.NoUnit,
              queries: [{ expr: `max by (instance) (${on('sidelight_budget_rung')})`, legend: '{{instance}}' }],
              stepped: true,
              max: 4,
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'CPU against the budget',
              description: 'Share of all CPUs of the node: the agent itself, its kernel programs, and what both may take.',
              unit: units.PercentUnit,
              queries: [
                { expr: `max by (component) (${on('sidelight_budget_cpu_ratio')})`, legend: '{{component}}, highest node' },
                { expr: `min(${on('sidelight_budget_cpu_limit_ratio')})`, legend: 'limit' },
              ],
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Memory against the budget',
              description: 'Resident memory of the agent, and what it may be.',
              unit: units.BytesIEC,
              queries: [
                { expr: `max by (instance) (${on('sidelight_budget_memory_bytes')})`, legend: '{{instance}}' },
                { expr: `min(${on('sidelight_budget_memory_limit_bytes')})`, legend: 'limit' },
              ],
            }),
            8,
          ],
        ],
        [
          [
            seriesPanel({
              title: 'Steps on the ladder',
              description: 'Steps of the budget per hour: down tells less, up tells more again.',
              unit: units.Short,
              queries: [{ expr: `sum by (direction) (increase(${on('sidelight_budget_steps_total')}[1h]))`, legend: '{{direction}}' }],
            }),
            6,
          ],
          [
            seriesPanel({
              title: 'Sampling',
              description: 'With which probability a connection that neither failed nor was slow has a log line, on the node where that is least.',
              unit: units.PercentUnit,
              queries: [{ expr: `min(${on('sidelight_budget_sampling_probability')})`, legend: 'probability' }],
              stepped: true,
              max: 1,
            }),
            6,
          ],
          [
            seriesPanel({
              title: 'Records left out by the budget',
              description: 'Connections per second that ended without a log record, or without a span; what they add up to is in the sums.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(rate(on('sidelight_self_records_sampled_out_total')), 'signal'), legend: '{{signal}}' }],
            }),
            6,
          ],
          [
            seriesPanel({
              title: 'Time in a kernel program',
              description: 'Mean time of a run. The kernel measures while kernel.bpf_stats_enabled is set, and a hundredth of the time for the budget.',
              unit: units.Seconds,
              queries: [
                {
                  expr: `${sum(rate(on('sidelight_bpf_program_seconds_total')), 'program')} / (${sum(rate(on('sidelight_bpf_program_runs_total')), 'program')} > 0)`,
                  legend: '{{program}}',
                },
              ],
            }),
            6,
          ],
        ],
        [
          [
            seriesPanel({
              title: 'CPU of the agent process',
              description: 'As the process counts it itself: how many cores it keeps busy, without its kernel programs.',
              unit: 'suffix: cores',
              queries: [{ expr: sum(rate(on('process_cpu_seconds_total')), 'instance'), legend: '{{instance}}' }],
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Resident memory of the agent process',
              description: 'As the process counts it itself.',
              unit: units.BytesIEC,
              queries: [{ expr: `max by (instance) (${on('process_resident_memory_bytes')})`, legend: '{{instance}}' }],
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Goroutines',
              description: 'Of the agent. Nothing makes one for each connection: a line that grows is a leak.',
              unit: units.Short,
              queries: [{ expr: `max by (instance) (${on('go_goroutines')})`, legend: '{{instance}}' }],
            }),
            8,
          ],
        ],
      ],
    },
    {
      title: 'Events, queues and losses',
      height: 8,
      lines: [
        [
          [
            seriesPanel({
              title: 'Dropped by stage',
              description: 'What was lost per second, and where. Sums of connections and bytes stay exact; log lines, records or spans are missing.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(rate(on('sidelight_dropped_total')), 'stage', 'kind'), legend: '{{stage}} {{kind}}' }],
              stacked: true,
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Waiting for backends, by node',
              description: 'Log records, spans and data points in the queues of exporters, in memory or on disk.',
              unit: units.Short,
              queries: [{ expr: sum(on('sidelight_self_export_queue'), 'instance', 'signal'), legend: '{{instance}} {{signal}}' }],
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Taken by backends',
              description: 'Log records, spans and data points per second that OTLP backends took and kept.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(rate(on('sidelight_self_exported_total')), 'signal'), legend: '{{signal}}' }],
            }),
            8,
          ],
        ],
        [
          [
            seriesPanel({
              title: 'Fill of the event ring',
              description: 'What waits in the ring, as a share of its size. It is read at an eighth at the latest; full, events are lost and only summed.',
              unit: units.PercentUnit,
              queries: [
                { expr: `max by (instance) (${on('sidelight_bpf_ring_pending_bytes')} / ${on('sidelight_bpf_ring_bytes')})`, legend: '{{instance}}' },
              ],
              max: 1,
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Events',
              description: 'Events per second: put into the ring by the kernel, read from it, and not asked for.',
              unit: units.CountsPerSecond,
              queries: [
                { expr: sum(rate(on('sidelight_self_events_submitted_total'))), legend: 'submitted' },
                { expr: sum(rate(on('sidelight_self_events_decoded_total'))), legend: 'decoded' },
                { expr: sum(rate(on('sidelight_self_events_sampled_out_total'))), legend: 'not asked for' },
              ],
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Closes that were only summed',
              description: 'Connections that ended and found no room in the ring, or were not asked for, per second: by edge, or by role and reason only.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(rate(on('sidelight_self_aggregated_closes_total')), 'by'), legend: '{{by}}' }],
            }),
            8,
          ],
        ],
        [
          [
            seriesPanel({
              title: 'Fill of export queues',
              description: 'What waits for backends as a share of what can. Full, a queue takes no more, and records are dropped before it.',
              unit: units.PercentUnit,
              queries: [
                {
                  expr: `max by (instance, signal) (${on('sidelight_self_export_queue')} / ${on('sidelight_self_export_queue_capacity')})`,
                  legend: '{{instance}} {{signal}}',
                },
              ],
              max: 1,
            }),
            12,
          ],
          [
            seriesPanel({
              title: 'Fill of edges and of followed connections',
              description:
                'As a share of max_edges and of max_connections, on the fullest node. Of edges above it those that are idle make room; the ends of connections above' +
                ' it are looked up at each event.',
              unit: units.PercentUnit,
              queries: [
                { expr: `max(${on('sidelight_self_edges')} / ${on('sidelight_self_edges_limit')})`, legend: 'edges' },
                { expr: `max(${on('sidelight_self_connections_followed')} / ${on('sidelight_self_connections_limit')})`, legend: 'followed connections' },
              ],
            }),
            12,
          ],
        ],
        [
          [
            seriesPanel({
              title: 'Edges',
              description: 'Edges that have series of their own, of max_edges at most.',
              unit: units.Short,
              queries: [{ expr: `max by (instance) (${on('sidelight_self_edges')})`, legend: '{{instance}}' }],
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Edges folded and evicted',
              description: 'Per second: records that went to the overflow edge for want of room, and edges that made room. Raise max_edges.',
              unit: units.CountsPerSecond,
              queries: [
                { expr: sum(rate(on('sidelight_self_edges_folded_total'))), legend: 'records folded' },
                { expr: sum(rate(on('sidelight_self_edges_evicted_total'))), legend: 'edges evicted' },
              ],
            }),
            8,
          ],
          [
            seriesPanel({
              title: 'Closed without having been seen open',
              description: 'Sockets per second that ended and that the kernel programs had not seen open, such as those of namespaces that nobody is in.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(rate(on('sidelight_self_untracked_closed_total')), 'instance'), legend: '{{instance}}' }],
            }),
            8,
          ],
        ],
        [
          [
            seriesPanel({
              title: 'Trace ids in SYNs',
              description:
                'Connections per second with peers that trace ids are exchanged with (traces.peers): sent by clients, or no room in the SYN; received by' +
                ' servers, or missing: the peer has no agent, or something on the way took the option out. Behind a NAT what is missing is two traces.',
              unit: units.CountsPerSecond,
              queries: [{ expr: sum(rate(on('sidelight_self_trace_ids_total')), 'outcome'), legend: '{{outcome}}' }],
            }),
            24,
          ],
        ],
      ],
    },
    {
      title: 'Data path',
      height: 8,
      lines: [
        [
          [
            seriesPanel({
              title: 'Fill of kernel maps',
              description:
                'Entries in use as a share of what there is room for, of the fullest node: what is full takes no more workloads, listeners or rules. Of the' +
                ' maps of the mesh half is for what takes the place of something that is still used.',
              unit: units.PercentUnit,
              queries: [{ expr: `max by (map) (${on('sidelight_bpf_map_entries')} / ${on('sidelight_bpf_map_max_entries')})`, legend: '{{map}}' }],
              max: 1,
            }),
            6,
          ],
          [
            tablePanel({
              title: 'Versions',
              description: 'Which version runs where.',
              unit: units.Short,
              columns: [
                { name: 'Node', label: 'instance' },
                { name: 'Version', label: 'version' },
                { name: 'Go', label: 'go_version' },
                { name: 'Agents', expr: sum(on('sidelight_build_info'), 'instance', 'version', 'go_version') },
              ],
            }),
            6,
          ],
          [
            seriesPanel({
              title: 'Agents that attended',
              description: 'How many agents have attended to the kernel programs since these were attached. A step is a start of the agent.',
              unit: units.Short,
              queries: [{ expr: `max by (instance) (${on('sidelight_datapath_agents_total')})`, legend: '{{instance}}' }],
              stepped: true,
            }),
            6,
          ],
          [
            seriesPanel({
              title: 'Time without an agent',
              description: 'For how long the kernel programs ran without an agent, in the last hour; the next agent tells it.',
              unit: units.Seconds,
              queries: [
                { expr: `sum by (instance) (increase(${on('sidelight_datapath_unattended_seconds_total')}[1h]))`, legend: '{{instance}}' },
              ],
            }),
            6,
          ],
        ],
      ],
    },
  ],
});
