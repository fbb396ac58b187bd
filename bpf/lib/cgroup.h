/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SIDELIGHT_CGROUP_H
#define SIDELIGHT_CGROUP_H

#include <bpf/bpf_core_read.h>

#include "../kernel.h"

/* The cgroup that the programs are attached to, for the iterators, which see all sockets. Set at load. */
const volatile __u64 attached_cgroup = 1;

/* The socket's cgroup, not the caller's: a process that moves to another cgroup takes no socket along. */
static __always_inline __u64 cgroup_id_of(struct sock *sk)
{
	struct cgroup *cgroup = sk->sk_cgrp_data.cgroup;
	struct kernfs_node *kn;

	if (!cgroup)
		return 0;
	kn = cgroup->kn;
	return kn ? kn->id : 0;
}

#define CGROUP_DEPTH 64 /* that far below the root we look for the cgroup that we are attached to */

/* By offset: the verifier allows no variable index into a flexible array. */
static __always_inline __u64 cgroup_ancestor(struct cgroup *cgroup, __u32 level)
{
	struct cgroup *ancestor = NULL;
	__u64 id = 0;

	if (bpf_core_field_exists(cgroup->ancestors)) {
		bpf_probe_read_kernel(&ancestor, sizeof(ancestor),
				      (void *)cgroup + bpf_core_field_offset(struct cgroup, ancestors) +
					      level * sizeof(ancestor));
		return BPF_CORE_READ(ancestor, kn, id);
	}
	bpf_probe_read_kernel(&id, sizeof(id),
			      (void *)cgroup + bpf_core_field_offset(struct cgroup___ids, ancestor_ids) + level * sizeof(id));
	return id;
}

/* Whether the hooks see the socket: its cgroup is the one that they are attached to, or below it. */
static __always_inline bool cgroup_is_ours(struct sock *sk)
{
	struct cgroup *cgroup = sk->sk_cgrp_data.cgroup;
	int level;

	if (!cgroup)
		return false;
	level = cgroup->level;
	for (int i = 0; i < CGROUP_DEPTH && i <= level; i++) {
		if (cgroup_ancestor(cgroup, i) == attached_cgroup)
			return true;
	}
	return false;
}

#endif
