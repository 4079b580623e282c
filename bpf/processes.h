/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Processes as they fork, start programs, load libraries and end, in a ring of their own, whose reader is woken at once: it may
 * have probes to attach. The end of a process is told in all rings: it ends connections, too.
 */
#ifndef LLMSEC_PROCESSES_H
#define LLMSEC_PROCESSES_H

static __always_inline void tell_process(__u8 type, __u32 pid, __u32 other)
{
	struct tap_event *event = process_ring_reserve(sizeof(*event));

	if (!event) {
		count(TAP_LOST_PROCESSES, 1);
		return;
	}
	event_head(event, type, pid, bpf_ktime_get_boot_ns());
	event->other = other;
	process_name(event->comm);
	process_ring_submit(event);
}

/* Connections of one process are in any ring. */
static __always_inline void tell_end(__u32 pid)
{
	struct tap_event *event;
	__u32 number;
	void *ring;

	for (number = 0; number < TAP_MAX_RINGS; number++) {
		__u32 key = number;

		if (number >= RINGS)
			break;
		ring = rings_lookup(&key);
		if (!ring)
			break;
		event = ring_reserve(ring, sizeof(*event) + TAP_CLASS_SMALL);
		if (!event) {
			count(TAP_LOST_RECORDS, 1);
			continue;
		}
		event_head(event, TAP_EXIT, pid, bpf_ktime_get_boot_ns());
		process_name(event->comm);
		ring_submit(event, BPF_RB_NO_WAKEUP);
	}
}

static __always_inline int process_forked(void *parent, void *child)
{
	__u32 pid = 0, child_pid = 0, one = 1;

	KERNEL_READ(pid, parent, task_struct, tgid);
	KERNEL_READ(child_pid, child, task_struct, tgid);
	if (pid == child_pid || is_own(pid) || !FOLLOW_FORKS || !targets_lookup(&pid))
		return 0;
	targets_update(&child_pid, &one);
	tell_process(TAP_FORK, pid, child_pid);
	return 0;
}

static __always_inline int process_started(void *task)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32, one = 1;
	struct comm_key name = {};

	if (is_own(pid))
		return 0;
	if (SELECT_COMM) {
		KERNEL_READ_COMM(name.comm, task);
		if (comms_lookup(&name))
			targets_update(&pid, &one);
	}
	if (WATCH_ALL || targets_lookup(&pid))
		tell_process(TAP_EXEC, pid, 0);
	return 0;
}

static __always_inline int process_ended(void *task)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 pid = id >> 32;
	void *signal = 0;
	int live = 0;

	threads_delete(&id);
	if (!is_watched(pid))
		return 0;
	KERNEL_READ(signal, task, task_struct, signal);
	KERNEL_READ(live, signal, signal_struct, live);
	if (live > 0)
		return 0;
	targets_delete(&pid);
	tell_end(pid);
	tell_process(TAP_EXIT, pid, 0);
	return 0;
}

/* The dynamic loader has changed what is mapped: it calls an empty function then, for debuggers. */
static __always_inline int libraries_changed(void)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;

	if (is_watched(pid))
		tell_process(TAP_MAP, pid, 0);
	return 0;
}

#endif
