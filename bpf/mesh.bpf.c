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
