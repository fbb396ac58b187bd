/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SIDELIGHT_OWNER_H
#define SIDELIGHT_OWNER_H

#include "../abi.h"
#include "../kernel.h"

static __always_inline void owner_from_task(struct mesh_owner *owner, struct task_struct *task)
{
	struct task_struct *leader;

	__builtin_memset(owner, 0, sizeof(*owner));
	/* A kernel thread works for some process, but nothing here says which (MPTCP subflows are opened by a worker). */
	if (task->flags & PF_KTHREAD)
		return;
	leader = task->group_leader;
	owner->pid = task->tgid;
	owner->start_boottime_ns = leader->start_boottime;
	/* Two words, not sixteen bytes: the verifier allows any width inside the array. */
	((__u64 *)owner->comm)[0] = ((__u64 *)leader->comm)[0];
	((__u64 *)owner->comm)[1] = ((__u64 *)leader->comm)[1];
}

/*
 * The current process, for hooks that run in its context. Read through BTF pointers rather than by helpers:
 * bpf_get_current_pid_tgid is not offered to cgroup/connect on 5.15 and 6.1, and to sockops on no kernel.
 */
static __always_inline void owner_from_current(struct mesh_owner *owner)
{
	owner_from_task(owner, (struct task_struct *)bpf_get_current_task_btf());
}

#endif
