// What all dashboards share: variables, matchers, panels with a title, a description and a unit each, and where they go.
import * as cog from '@grafana/grafana-foundation-sdk/cog';
import * as common from '@grafana/grafana-foundation-sdk/common';
import * as dashboard from '@grafana/grafana-foundation-sdk/dashboard';
import * as heatmap from '@grafana/grafana-foundation-sdk/heatmap';
import * as logs from '@grafana/grafana-foundation-sdk/logs';
import * as loki from '@grafana/grafana-foundation-sdk/loki';
import * as nodegraph from '@grafana/grafana-foundation-sdk/nodegraph';
import * as prometheus from '@grafana/grafana-foundation-sdk/prometheus';
import * as stat from '@grafana/grafana-foundation-sdk/stat';
import * as table from '@grafana/grafana-foundation-sdk/table';
import * as timeseries from '@grafana/grafana-foundation-sdk/timeseries';
import * as units from '@grafana/grafana-foundation-sdk/units';

export { units };
export type Panel = cog.Builder<dashboard.Panel>;

const ref = (type: string, variable: string) => ({ type, uid: '${' + variable + '}' });
const metrics = ref('prometheus', 'datasource');

/** rate is the rate of a counter over what fits the resolution of the panel and the interval of scrapes. */
export const rate = (selector: string) => `rate(${selector}[$__rate_interval])`;

/** sum sums by labels; without any it sums all. */
export const sum = (expr: string, ...by: string[]) => (by.length ? `sum by (${by.join(', ')}) (${expr})` : `sum(${expr})`);

/** quantile of a classic histogram, which every backend has, whether or not it takes the native one. */
export const quantile = (q: number, selector: string, ...by: string[]) => `histogram_quantile(${q}, ${sum(rate(selector), 'le', ...by)})`;

// ---- queries

export interface Query {
  expr: string;
  legend?: string;
  refId?: string;
  exemplars?: boolean;
  format?: 'heatmap' | 'table' | 'now';
}

function target(q: Query, i: number): cog.Builder<cog.Dataquery> {
  const b = new prometheus.DataqueryBuilder()
    .datasource(metrics)
    .editorMode(prometheus.QueryEditorMode.Code)
    .refId(q.refId ?? String.fromCharCode('A'.charCodeAt(0) + i))
    .expr(q.expr);
  if (q.legend !== undefined) b.legendFormat(q.legend);
  if (q.exemplars) b.exemplar(true);
  switch (q.format) {
    case 'table':
      return b.instant().format(prometheus.PromQueryFormat.Table);
    case 'now':
      return b.instant();
    case 'heatmap':
      return b.range().format(prometheus.PromQueryFormat.Heatmap).legendFormat('{{le}}');
    default:
      return b.range();
  }
}

interface Base {
  title: string;
  description: string;
  unit: string;
}

// ---- panels

const steps = (...s: [number | null, string][]) =>
  new dashboard.ThresholdsConfigBuilder().mode(dashboard.ThresholdsMode.Absolute).steps(s.map(([value, color]) => ({ value, color })));

export interface Stat extends Base {
  expr: string;
  /** Where there is more than one value. */
  legend?: string;
  /** From these values on it is yellow and red. */
  warn?: number;
  bad?: number;
  decimals?: number;
  mappings?: dashboard.ValueMapping[];
}

/** statPanel shows what is now: of a range the last value that there was may be of an hour ago. */
export function statPanel(s: Stat): Panel {
  const b = new stat.PanelBuilder()
    .title(s.title)
    .description(s.description)
    .datasource(metrics)
    .unit(s.unit)
    .reduceOptions(new common.ReduceDataOptionsBuilder().calcs(['last']))
    .graphMode(common.BigValueGraphMode.None)
    .withTarget(target({ expr: s.expr, format: 'now', ...(s.legend === undefined ? {} : { legend: s.legend }) }, 0));
  const levels: [number | null, string][] = [[null, s.bad === undefined && s.warn === undefined ? 'blue' : 'green']];
  if (s.warn !== undefined) levels.push([s.warn, 'yellow']);
  if (s.bad !== undefined) levels.push([s.bad, 'red']);
  b.thresholds(steps(...levels));
  if (s.decimals !== undefined) b.decimals(s.decimals);
  if (s.mappings) b.mappings(s.mappings);
  return b;
}

export interface Series extends Base {
  queries: Query[];
  stacked?: boolean;
  log?: boolean;
  /** Share of the whole: the axis goes from 0 to 1. */
  max?: number;
  stepped?: boolean;
}

export function seriesPanel(s: Series): Panel {
  const b = new timeseries.PanelBuilder()
    .title(s.title)
    .description(s.description)
    .datasource(metrics)
    .unit(s.unit)
    .lineWidth(1)
    .fillOpacity(s.stacked ? 30 : 8)
    .showPoints(common.VisibilityMode.Never)
    .spanNulls(false)
    .legend(
      new common.VizLegendOptionsBuilder()
        .displayMode(common.LegendDisplayMode.List)
        .placement(common.LegendPlacement.Bottom)
        .showLegend(true),
    )
    .tooltip(new common.VizTooltipOptionsBuilder().mode(common.TooltipDisplayMode.Multi).sort(common.SortOrder.Descending));
  if (s.stacked) b.stacking(new common.StackingConfigBuilder().mode(common.StackingMode.Normal).group('A'));
  if (s.log) b.scaleDistribution(new common.ScaleDistributionConfigBuilder().type(common.ScaleDistribution.Log).log(10));
  else b.min(0);
  if (s.max !== undefined) b.max(s.max);
  if (s.stepped) b.lineInterpolation(common.LineInterpolation.StepAfter);
  s.queries.forEach((q, i) => b.withTarget(target(q, i)));
  return b;
}

export interface Heat extends Base {
  selector: string; // of the _bucket series
}

export function heatPanel(h: Heat): Panel {
  return new heatmap.PanelBuilder()
    .title(h.title)
    .description(h.description)
    .datasource(metrics)
    .unit('short')
    .calculate(false)
    .yAxis(new heatmap.YAxisConfigBuilder().unit(h.unit))
    .color(
      new heatmap.HeatmapColorOptionsBuilder()
        .mode(heatmap.HeatmapColorMode.Scheme)
        .scheme('Spectral')
        .scale(heatmap.HeatmapColorScale.Exponential)
        .exponent(0.5)
        .steps(64)
        .reverse(true),
    )
    .cellGap(1)
    .showLegend()
    .tooltip(new heatmap.HeatmapTooltipBuilder().mode(common.TooltipDisplayMode.Single).yHistogram(true))
    .exemplarsColor('rgba(255,0,255,0.7)')
    .withTarget(target({ expr: sum(`increase(${h.selector}[$__rate_interval])`, 'le'), format: 'heatmap', exemplars: true }, 0));
}

export interface Column {
  name: string;
  /** One of the two: a query, whose value is the column, or the label that is shown under this name. */
  expr?: string;
  label?: string;
  unit?: string;
  link?: string;
}

export interface Table extends Base {
  columns: Column[];
}

/** tablePanel joins instant queries by their labels: one row for each set of labels. */
export function tablePanel(t: Table): Panel {
  const b = new table.PanelBuilder()
    .title(t.title)
    .description(t.description)
    .datasource(metrics)
    .unit(t.unit)
    .filterable(true)
    .cellHeight(common.TableCellHeight.Sm);
  const rename: Record<string, string> = {};
  const order: Record<string, number> = {};
  const values = t.columns.filter((c) => c.expr !== undefined);
  t.columns.forEach((c, i) => {
    let field = c.label ?? '';
    if (c.expr !== undefined) {
      const refId = String.fromCharCode('A'.charCodeAt(0) + values.indexOf(c));
      b.withTarget(target({ expr: c.expr, refId, format: 'table' }, 0));
      field = values.length > 1 ? `Value #${refId}` : 'Value';
    }
    rename[field] = c.name;
    order[field] = i;
    const properties: dashboard.DynamicConfigValue[] = [];
    if (c.unit !== undefined) properties.push({ id: 'unit', value: c.unit });
    if (c.link !== undefined) properties.push({ id: 'links', value: [{ title: 'Open', url: c.link }] });
    if (properties.length) b.overrideByName(c.name, properties);
  });
  return b
    .withTransformation({ id: 'merge', options: {} })
    .withTransformation({ id: 'organize', options: { excludeByName: { Time: true }, indexByName: order, renameByName: rename } });
}

/** graphPanel wants labels id, source and target of edges, and id of nodes: the panel takes a frame with a field "source" for edges. */
export function graphPanel(g: Base & { edges: string; nodes: string }): Panel {
  return new nodegraph.PanelBuilder()
    .title(g.title)
    .description(g.description)
    .datasource(metrics)
    .unit(g.unit)
    .nodes(new nodegraph.NodeOptionsBuilder().mainStatUnit(g.unit))
    .edges(new nodegraph.EdgeOptionsBuilder().mainStatUnit(g.unit))
    .withTarget(target({ expr: g.edges, refId: 'edges', format: 'table' }, 0))
    .withTarget(target({ expr: g.nodes, refId: 'nodes', format: 'table' }, 1))
    .withTransformation({
      id: 'organize',
      options: { excludeByName: { Time: true }, indexByName: {}, renameByName: { 'Value #edges': 'mainstat', 'Value #nodes': 'mainstat' } },
    });
}

// ---- logs and traces

const logPanel = (title: string, description: string) =>
  new logs.PanelBuilder()
    .title(title)
    .description(description)
    .unit('none')
    .showTime(true)
    .wrapLogMessage(false)
    .enableLogDetails(true)
    .sortOrder(common.LogsSortOrder.Descending)
    .dedupStrategy(common.LogsDedupStrategy.None);

/** An OTLP log record has no body: the line is put together from its attributes. */
const lokiLine =
  '| line_format `{{.sidelight_role}} {{.service_name}} {{.network_peer_address}}:{{.network_peer_port}} {{.sidelight_reason}}' +
  ' sent={{.sidelight_sent_bytes}} received={{.sidelight_received_bytes}} {{.sidelight_service}} {{.sidelight_backend}}`';

export function lokiPanel(description: string, stream: string, filter: string): Panel {
  const datasource = ref('loki', 'loki');
  return logPanel('Access log (Loki)', description)
    .datasource(datasource)
    .withTarget(
      new loki.DataqueryBuilder()
        .datasource(datasource)
        .refId('A')
        .queryType('range')
        .editorMode(loki.QueryEditorMode.Code)
        .maxLines(500)
        .expr(`{${stream}} ${filter} ${lokiLine}`),
    );
}

/** PluginQuery is one of a data source that the SDK has no types for. */
class PluginQuery implements cog.Builder<cog.Dataquery> {
  constructor(private readonly query: Record<string, unknown>) {}
  build(): cog.Dataquery {
    return { ...this.query, _implementsDataqueryVariant() {} };
  }
}

const victoriaLine =
  '| format "<sidelight.role> <service.name> <network.peer.address>:<network.peer.port> <sidelight.reason>' +
  ' sent=<sidelight.sent_bytes> received=<sidelight.received_bytes> <sidelight.service> <sidelight.backend>" as _msg';

export function victoriaLogsPanel(description: string, filter: string): Panel {
  const datasource = ref('victoriametrics-logs-datasource', 'victorialogs');
  return logPanel('Access log (VictoriaLogs)', description)
    .datasource(datasource)
    .withTarget(
      new PluginQuery({
        datasource,
        refId: 'A',
        queryType: 'instant',
        editorMode: 'code',
        maxLines: 500,
        expr: `${filter} ${victoriaLine}`,
      }),
    );
}

export function tracesPanel(description: string, query: string): Panel {
  const datasource = ref('tempo', 'tempo');
  return new table.PanelBuilder()
    .title('Traces of connections that failed or were slow (Tempo)')
    .description(description)
    .datasource(datasource)
    .unit('none')
    .withTarget(new PluginQuery({ datasource, refId: 'A', queryType: 'traceql', tableType: 'traces', limit: 50, query }));
}

// ---- variables

const all = { text: 'All', value: '$__all' };

export const datasourceVariable = (name: string, label: string, type: string) =>
  new dashboard.DatasourceVariableBuilder(name).label(label).type(type);

export interface Variable {
  name: string;
  label: string;
  description: string;
  /** What All stands for. Without one it is all values, one after the other. */
  all?: string;
  single?: boolean;
  query: string;
}

export function variable(v: Variable): cog.Builder<dashboard.VariableModel> {
  const b = new dashboard.QueryVariableBuilder(v.name)
    .label(v.label)
    .description(v.description)
    .datasource(metrics)
    .query({ query: v.query, refId: 'variable' })
    .definition(v.query)
    .refresh(dashboard.VariableRefresh.OnTimeRangeChanged)
    .sort(dashboard.VariableSort.AlphabeticalAsc);
  if (v.single) return b;
  b.multi(true).includeAll(true).current(all);
  if (v.all !== undefined) b.allValue(v.all);
  return b;
}

export const roleVariable = (initial: 'client' | 'all') => {
  const b = new dashboard.CustomVariableBuilder('role')
    .label('Role')
    .description('Which end of its connections the workload is: of one between two observed workloads each end is told.')
    .values('client,server')
    .includeAll(true)
    .allValue('client|server');
  const option = (text: string, value: string, selected: boolean) => ({ text, value, selected });
  const first = initial === 'all' ? all : { text: 'client', value: 'client' };
  return b
    .current(first)
    .options([option('All', '$__all', initial === 'all'), option('client', 'client', initial === 'client'), option('server', 'server', false)]);
};

// ---- the whole

export interface Row {
  title: string;
  collapsed?: boolean;
  height: number;
  /** Lines of panels, each with its share of 24 columns. */
  lines: [Panel, number][][];
}

export interface Dashboard {
  uid: string;
  title: string;
  description: string;
  variables: cog.Builder<dashboard.VariableModel>[];
  rows: Row[];
}

/** build lays the rows out below each other. */
export function build(d: Dashboard): dashboard.Dashboard {
  const b = new dashboard.DashboardBuilder(d.title)
    .uid(d.uid)
    .description(d.description)
    .tags(['sidelight'])
    .readonly()
    .time({ from: 'now-1h', to: 'now' })
    .timezone('browser')
    .refresh('30s')
    .tooltip(dashboard.DashboardCursorSync.Crosshair)
    .variables([datasourceVariable('datasource', 'Metrics', 'prometheus'), ...d.variables])
    .link(
      new dashboard.DashboardLinkBuilder('Sidelight')
        .type(dashboard.DashboardLinkType.Dashboards)
        .tags(['sidelight'])
        .asDropdown(true)
        .includeVars(true)
        .keepTime(true),
    );
  const built = b.build();
  const panels: (dashboard.Panel | dashboard.RowPanel)[] = [];
  let id = 1;
  let y = 0;
  for (const row of d.rows) {
    const collapsed = row.collapsed ?? false;
    const head: dashboard.RowPanel = {
      ...new dashboard.RowBuilder(row.title).collapsed(collapsed).id(id++).gridPos({ x: 0, y, w: 24, h: 1 }).build(),
    };
    panels.push(head);
    y++;
    for (const line of row.lines) {
      let x = 0;
      for (const [panel, w] of line) {
        const p = { ...panel.build(), id: id++, gridPos: { x, y, w, h: row.height } };
        (collapsed ? head.panels : panels).push(p);
        x += w;
      }
      y += row.height;
    }
  }
  built.panels = panels;
  return built;
}
