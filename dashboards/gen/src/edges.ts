// Variables, matchers and panels that dashboards share.
import { datasourceVariable, lokiPanel, quantile, rate, roleVariable, sum, tracesPanel, units, variable, victoriaLogsPanel, type Query, type Row, type Stat } from './model';

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

/** on selects what an agent tells of its node by the variables of nodes. */
export const on = (metric: string, ...more: string[]) => `${metric}{${['cluster=~"$cluster"', 'instance=~"$instance"', ...more].join(', ')}}`;

/** limitFill is what stands against a limit, as a share of its bound. */
export const limitFill = (select: (metric: string) => string, what: 'open' | 'connecting') =>
  `${select(`sidelight_mesh_limit_${what}`)} / ${select(`sidelight_mesh_limit_max_${what}`)}`;

/** serving is the share of a service's endpoints that serve a node or stand by, of those that could, by node and labels. */
export const serving = (select: (metric: string, ...more: string[]) => string, ...by: string[]) => {
  const endpoints = (states: string) => sum(select('sidelight_mesh_service_endpoints', `state=~"${states}"`), 'instance', ...by);
  return `${endpoints('eligible|standby')} / (${endpoints('eligible|standby|unhealthy|ejected')} > 0)`;
};

/** local selects a metric's edges by the variables of the local workload. */
export const local = (metric: string, ...more: string[]) =>
  `sidelight_tcp_${metric}{${['cluster=~"$cluster"', 'local_namespace=~"$namespace"', 'local_workload=~"$workload"', ...more].join(', ')}}`;

export const client = 'role="client"';
export const server = 'role="server"';
export const chosenRole = 'role=~"$role"';

/** what names an edge in a table, and in a legend. */
export const edgeLabels = ['local_namespace', 'local_workload', 'service_namespace', 'service', 'peer_namespace', 'peer_workload'];
export const edgeLegend = '{{local_namespace}} {{local_workload}} > {{service_namespace}} {{service}} {{peer_namespace}} {{peer_workload}}';

/** connects are those of local workloads. */
export const connects = {
  attempts: rate(local('connection_attempts_total', client)),
  failures: rate(local('connection_failures_total', client)),
  handshakes: local('connect_duration_seconds_bucket', client),
  firstBytes: local('first_byte_duration_seconds_bucket', client),
};

/** retransmits are segments that were sent again, without those of handshakes: these are no loss of payload, and are told apart. */
export const retransmits = (...by: string[]) =>
  `(${sum(rate(local('retransmits_total', chosenRole)), ...by)} - ${sum(rate(local('syn_retransmits_total', chosenRole)), ...by)})`;

/** failedShare is for a stat. Without a failure yet there is no series of failures: then the share is 0. */
export const failedShare = (description: string, failures: string, attempts: string): Stat => ({
  title: 'Failed',
  description,
  unit: units.PercentUnit,
  expr: `(${sum(failures)} or vector(0)) / (${sum(attempts)} > 0)`,
  warn: 0.01,
  bad: 0.05,
  decimals: 2,
});

/** handshakeP99 is for a stat. */
export const handshakeP99 = (description: string, selector: string): Stat => ({
  title: 'Handshake, 99th percentile',
  description,
  unit: units.Seconds,
  expr: quantile(0.99, selector),
  warn: 0.25,
  bad: 1,
});

/** quantiles are lines of a latency, with exemplars: by labels, whose legend comes before the quantile. */
export const quantiles = (selector: string, legend = '', by: string[] = [], of = [0.5, 0.9, 0.99]): Query[] =>
  of.map((q) => ({ expr: quantile(q, selector, ...by), legend: `${legend}p${q * 100}`, exemplars: true }));

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
