//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The one compiled file: one object, so maps and types exist once. prog/ has the attach points, lib/ what they do. */
#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "kernel.h"
#include "maps.h"

#include "prog/connect.h"
#include "prog/iter.h"
#include "prog/lookup.h"
#include "prog/sockops.h"
#include "prog/trace.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Keeps the types in BTF, so that bpf2go makes Go types of them. */
const struct mesh_event *mesh_event_ __attribute__((unused));
const struct mesh_close_event *mesh_close_event_ __attribute__((unused));
const enum mesh_flags *mesh_flags_ __attribute__((unused));
const enum mesh_told *mesh_told_ __attribute__((unused));
const enum mesh_kind *mesh_kind_ __attribute__((unused));
const enum mesh_role *mesh_role_ __attribute__((unused));
const enum mesh_reason *mesh_reason_ __attribute__((unused));
const enum mesh_verdict *mesh_verdict_ __attribute__((unused));
const enum mesh_algorithm *mesh_algorithm_ __attribute__((unused));
const enum mesh_workload_flags *mesh_workload_flags_ __attribute__((unused));
const struct mesh_decision *mesh_decision_ __attribute__((unused));
const struct mesh_frontend *mesh_frontend_ __attribute__((unused));
const struct mesh_table *mesh_table_ __attribute__((unused));
const struct mesh_backend *mesh_backend_ __attribute__((unused));
const struct mesh_load *mesh_load_ __attribute__((unused));
const struct mesh_workload *mesh_workload_ __attribute__((unused));
const struct mesh_limit *mesh_limit_ __attribute__((unused));
const struct mesh_limit_state *mesh_limit_state_ __attribute__((unused));
const struct mesh_rules *mesh_rules_ __attribute__((unused));
const struct mesh_policy_set *mesh_policy_set_ __attribute__((unused));
const struct mesh_policy_source *mesh_policy_source_ __attribute__((unused));
const struct mesh_policy_block *mesh_policy_block_ __attribute__((unused));
const struct mesh_trace_block *mesh_trace_block_ __attribute__((unused));
const enum mesh_trace_outcome *mesh_trace_outcome_ __attribute__((unused));
const struct mesh_policy_port *mesh_policy_port_ __attribute__((unused));
const struct mesh_verdict_key *mesh_verdict_key_ __attribute__((unused));
const struct mesh_address *mesh_address_ __attribute__((unused));
const struct mesh_connection_in_mesh *mesh_connection_in_mesh_ __attribute__((unused));
const struct mesh_ledger *mesh_ledger_ __attribute__((unused));
const struct mesh_counted *mesh_counted_ __attribute__((unused));
const struct mesh_logged *mesh_logged_ __attribute__((unused));
const struct mesh_watchdog *mesh_watchdog_ __attribute__((unused));
const struct mesh_ticket *mesh_ticket_ __attribute__((unused));
const struct mesh_listen *mesh_listen_ __attribute__((unused));
const struct mesh_listener *mesh_listener_ __attribute__((unused));
