/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whether policies let somebody connect: three look-ups, however many rules there are. */
#ifndef SIDELIGHT_POLICY_H
#define SIDELIGHT_POLICY_H

#include "../maps.h"
#include "bits.h"

/* Who wants to connect to what, as policies see it. */
struct policy_question {
	__u32 set;
	__u32 source; /* class */
	__u32 port;
	bool address_known;
	struct mesh_address address;
};

static __always_inline struct mesh_rules *policy_rules_by_source(const struct policy_question *q)
{
	struct mesh_policy_source key = {.set = q->set, .source = q->source};
	struct mesh_rules *rules = bpf_map_lookup_elem(&policy_sources, &key);

	if (rules)
		return rules;
	key.source = MESH_SOURCE_OTHER;
	return bpf_map_lookup_elem(&policy_sources, &key);
}

static __always_inline struct mesh_rules *policy_rules_by_port(const struct policy_question *q)
{
	struct mesh_policy_port key = {.set = q->set, .port = q->port};
	struct mesh_rules *rules = bpf_map_lookup_elem(&policy_ports, &key);

	if (rules)
		return rules;
	key.port = 0;
	return bpf_map_lookup_elem(&policy_ports, &key);
}

static __always_inline struct mesh_rules *policy_rules_by_address(const struct policy_question *q)
{
	struct mesh_policy_block key = {.prefix_bits = 32 + 128, .set = q->set};

	__builtin_memcpy(key.addr, q->address.addr, sizeof(key.addr));
	return bpf_map_lookup_elem(&policy_blocks, &key);
}

/* The first rule, or MESH_NO_RULE. A function of its own, as policy_count: the verifier looks at it once, not once for each way there. */
__noinline int policy_first(const struct mesh_rules *rules)
{
	if (!rules) /* never, but the verifier cannot know */
		return MESH_NO_RULE;
	for (int i = 0; i < MESH_RULE_WORDS; i++) {
		if (rules->words[i])
			return i * 64 + bits_lowest(rules->words[i]);
	}
	return MESH_NO_RULE;
}

/* What Istio says: what any deny matches is denied; where there is an allow, so is what no allow matches. */
static __always_inline __u8 policy_verdict(const struct mesh_rules *denied, const struct mesh_rules *allowed, bool has_allow,
					   __u16 *rule)
{
	*rule = policy_first(denied);
	if (*rule != MESH_NO_RULE)
		return MESH_VERDICT_DENY;
	if (!has_allow)
		return MESH_VERDICT_ALLOW;
	*rule = policy_first(allowed);
	return *rule != MESH_NO_RULE ? MESH_VERDICT_ALLOW : MESH_VERDICT_DENY;
}

__noinline int policy_count(__u32 set, __u32 rule, __u32 verdict, __u32 dry)
{
	struct mesh_verdict_key key = {.policy_set = set, .rule = rule, .verdict = verdict, .dry = dry};
	static const __u64 none;
	__u64 *count = bpf_map_lookup_elem(&verdicts, &key);

	if (!count) {
		/* Another CPU may be first: then this fails and the look-up finds its entry. */
		bpf_map_update_elem(&verdicts, &key, &none, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&verdicts, &key);
	}
	if (count)
		__sync_fetch_and_add(count, 1ULL);
	return 0;
}

static __always_inline bool policy_denies(const struct mesh_decision *decision)
{
	return decision->verdict >= MESH_VERDICT_DENY;
}

/* For how long policies hold without an agent that could change them; then they deny everything. 0: for ever. Set at load. */
const volatile __u64 fail_closed_ns = 0;

static __always_inline bool policy_is_unattended(void)
{
	struct mesh_watchdog *w;
	__u32 first = 0;
	__u64 alive;

	if (!fail_closed_ns)
		return false;
	w = bpf_map_lookup_elem(&watchdog, &first);
	if (!w)
		return false;
	/* Before the clock, or an agent that comes alive in between would seem to be of the future. */
	alive = *(volatile __u64 *)&w->alive_ns;
	return bpf_ktime_get_ns() - alive > fail_closed_ns;
}

/*
 * Fills in what the decision says of policies. An address that is not known yet (who connects is not routed yet) leaves the rules that ask for it
 * open: they deny nothing here and keep nothing from being allowed, and the server's side, which knows it, decides. Anything that is not
 * there although it must be denies, and to new connections also an agent that has been missing for too long.
 */
static __always_inline void policy_decide(struct mesh_decision *decision, const struct policy_question *q, const bool new)
{
	struct mesh_rules *source, *address = NULL, *port, denied, allowed;
	struct mesh_policy_set *set;
	__u32 index = q->set;

	decision->policy_set = index;
	decision->rule = MESH_NO_RULE;
	decision->dry_rule = MESH_NO_RULE;
	decision->verdict = MESH_VERDICT_DENY;
	if (new && policy_is_unattended()) {
		decision->verdict = MESH_VERDICT_UNATTENDED;
		return;
	}
	set = bpf_map_lookup_elem(&policy_sets, &index);
	source = policy_rules_by_source(q);
	port = policy_rules_by_port(q);
	if (!set || !source || !port)
		return;
	if (!decision->generation)
		decision->generation = set->generation;
	if (q->address_known) {
		address = policy_rules_by_address(q);
		if (!address)
			return;
	}
	for (int i = 0; i < MESH_RULE_WORDS; i++) {
		__u64 matched = source->words[i] & port->words[i];

		allowed.words[i] = matched;
		denied.words[i] = address ? matched & address->words[i] : matched & ~set->blocks.words[i];
		if (address)
			allowed.words[i] &= address->words[i];
	}
	for (int dry = 1; dry >= 0; dry--) {
		const struct mesh_rules *deny = dry ? &set->dry_deny : &set->deny, *allow = dry ? &set->dry_allow : &set->allow;
		struct mesh_rules d, a;
		__u8 verdict;
		__u16 rule;

		for (int i = 0; i < MESH_RULE_WORDS; i++) {
			d.words[i] = denied.words[i] & deny->words[i];
			a.words[i] = allowed.words[i] & allow->words[i];
		}
		verdict = policy_verdict(&d, &a, dry ? set->has_dry_allow : set->has_allow, &rule);
		if (!dry) {
			decision->verdict = verdict;
			decision->rule = rule;
		} else if (rule == MESH_NO_RULE && !set->has_dry_allow) {
			continue; /* no dry-run policy is about it */
		} else {
			decision->dry_verdict = verdict;
			decision->dry_rule = rule;
		}
		policy_count(index, rule, verdict, dry);
	}
}

#endif
