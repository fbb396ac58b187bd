// Variables, matchers and panels of what is told by edge: sidelight_tcp_*.
import { datasourceVariable, lokiPanel, roleVariable, tracesPanel, variable, victoriaLogsPanel, type Row } from './model';

export const cluster = variable({
  name: 'cluster',
  label: 'Cluster',
  description: 'A label that Prometheus, or whoever writes to it, adds to what it scrapes. All works without one, too.',
  all: '.*',
  query: 'label_values(sidelight_build_info, cluster)',
});

export const namespace = variable({
  name: 'namespace',
  label: 'Namespace',
  description: 'Of the local workload. Workloads that have none are in All only.',
  all: '.*',
  query: 'label_values(sidelight_tcp_connection_established_total{cluster=~"$cluster"}, local_namespace)',
});

export const workload = variable({
  name: 'workload',
  label: 'Workload',
  description: 'The local workload: of the mesh, or else the systemd unit, the container or the cgroup.',
  all: '.+',
  query: 'label_values(sidelight_tcp_connection_established_total{cluster=~"$cluster", local_namespace=~"$namespace"}, local_workload)',
});

export const node = variable({
  name: 'instance',
  label: 'Node',
  description: 'The agent, by the address that it is scraped at.',
  query: 'label_values(sidelight_build_info{cluster=~"$cluster"}, instance)',
});

export const role = roleVariable;

export const logVariables = [
  datasourceVariable('loki', 'Logs (Loki)', 'loki'),
  datasourceVariable('victorialogs', 'Logs (VictoriaLogs)', 'victoriametrics-logs-datasource'),
  datasourceVariable('tempo', 'Traces (Tempo)', 'tempo'),
];

/** local selects a metric's edges by the variables of the local workload. */
export const local = (metric: string, ...more: string[]) =>
  `sidelight_tcp_${metric}{${['cluster=~"$cluster"', 'local_namespace=~"$namespace"', 'local_workload=~"$workload"', ...more].join(', ')}}`;

export const client = 'role="client"';
export const server = 'role="server"';
export const chosenRole = 'role=~"$role"';

/** what names an edge in a table. */
export const edgeLabels = ['local_namespace', 'local_workload', 'service_namespace', 'service', 'peer_namespace', 'peer_workload'];

/**
 * signals is the row with the access log in both variants, and traces. It is collapsed, because hardly anybody has all three. Attributes
 * of the OTLP log record are structured metadata of Loki, with underscores, and fields of VictoriaLogs.
 */
export function signals(description: string, loki: { stream: string; filter: string }, victoria: string, traceql: string): Row {
  return {
    title: 'Access log and traces',
    collapsed: true,
    height: 10,
    lines: [
      [[lokiPanel(`${description} From OTLP log records in Loki; the trace id is in the details of a line.`, loki.stream, loki.filter), 24]],
      [[victoriaLogsPanel(`${description} From OTLP log records in VictoriaLogs; the trace id is in the details of a line.`, victoria), 24]],
      [[tracesPanel(`${description} Both ends of a connection are in one trace.`, traceql), 24]],
    ],
  };
}

export const workloadSignals = (description: string) =>
  signals(
    description,
    {
      stream: 'service_name=~"$workload", service_namespace=~"$namespace"',
      filter: '| sidelight_role=~"$role"',
    },
    '{"service.name"=~"$workload"} "service.namespace":~"$namespace" "sidelight.role":~"$role"',
    '{ resource.service.name =~ "$workload" && span.sidelight.role =~ "$role" && (status = error || duration > 1s) }',
  );
