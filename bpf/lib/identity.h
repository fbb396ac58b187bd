/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who is at an end of a connection. */
#ifndef SIDELIGHT_IDENTITY_H
#define SIDELIGHT_IDENTITY_H

#include "../maps.h"
#include "bits.h"
#include "cgroup.h"

/*
 * Whether there is a mesh. Set at load: without one the verifier leaves programs of a mesh empty. The hooks that there are with and without one have
 * a program for either (in_mesh is a constant to the compiler), so that who has no mesh does not pay for one by an instruction.
 */
const volatile bool mesh = false;

/*
 * What the mesh has, so that nothing is looked for that is not there. Set by user space before the first of it can be found, and cleared after the last
 * is gone, also while programs run.
 */
volatile __u32 mesh_has;

enum mesh_has {
	MESH_HAS_POLICIES = 1, /* workloads with a policy set: only for these it matters who is at the other end */
	MESH_HAS_ANY_PORT = 2, /* frontends with port 0 */
};

/* Depths below the root, as bits, at which `cgroups` has entries. Set by user space before an entry is there, also while programs run. */
volatile __u64 cgroup_levels;

/* Looks at the lowest of the depths, and takes it away. */
static __always_inline void identity_step(struct cgroup *cgroup, int depth, __u64 *levels, __u32 *nearest)
{
	__u32 *found;
	__u64 id;
	int level;

	if (!*levels)
		return;
	level = bits_lowest(*levels);
	*levels &= *levels - 1;
	if (level > depth)
		return;
	id = cgroup_ancestor(cgroup, level & 63);
	found = bpf_map_lookup_elem(&cgroups, &id);
	if (found)
		*nearest = *found;
}

/*
 * The workload of a cgroup: that of the nearest above which has one, because a workload may have cgroups in it, its own or those of workloads
 * in it; a process that makes one more stays what it was. Eight depths at most: the datapath refuses a mesh with more. Not a loop: clang
 * would take what only kernels before 6.1 have out of it, and with that out of the condition which keeps it from newer ones.
 */
static __always_inline __u32 identity_of_cgroup(struct cgroup *cgroup)
{
	__u64 levels = cgroup_levels;
	__u32 nearest = 0;
	int depth;

	if (!cgroup)
		return 0;
	depth = cgroup->level;
	identity_step(cgroup, depth, &levels, &nearest);
	identity_step(cgroup, depth, &levels, &nearest);
	identity_step(cgroup, depth, &levels, &nearest);
	identity_step(cgroup, depth, &levels, &nearest);
	identity_step(cgroup, depth, &levels, &nearest);
	identity_step(cgroup, depth, &levels, &nearest);
	identity_step(cgroup, depth, &levels, &nearest);
	identity_step(cgroup, depth, &levels, &nearest);
	return nearest;
}

static __always_inline __u32 identity_of_address(const struct mesh_address *addr)
{
	__u32 *found = bpf_map_lookup_elem(&addresses, addr);

	return found ? *found : 0;
}

#endif
