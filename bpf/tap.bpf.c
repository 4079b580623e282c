// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
/* The object that `llmsec-tap capture` loads: which program stands at which hook. The bodies are in the headers. */
#include "core.h"
#include "records.h"
#include "sockets.h"
#include "tls_io.h"
#include "plain.h"
#include "processes.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("uprobe")
int tls_enter(struct pt_regs *regs)
{
	return call_entered(regs, bpf_get_attach_cookie(regs));
}

SEC("uretprobe")
int tls_return(struct pt_regs *regs)
{
	return call_returned(regs);
}

SEC("uretprobe")
int tls_new(struct pt_regs *regs)
{
	return connection_opened(regs);
}

SEC("uprobe")
int tls_free(struct pt_regs *regs)
{
	return connection_freed(REG_FIRST(regs));
}

SEC("uprobe")
int go_enter(struct pt_regs *regs)
{
	return go_entered(regs, bpf_get_attach_cookie(regs));
}

SEC("uprobe")
int go_return(struct pt_regs *regs)
{
	return go_returned(regs);
}

SEC("uprobe")
int go_close(struct pt_regs *regs)
{
	return connection_freed(GO_FIRST(regs));
}

SEC("uprobe")
int on_libraries(struct pt_regs *regs)
{
	return libraries_changed();
}

SEC("tp_btf/sock_send_length")
int on_send(__u64 *args)
{
	plain_moved((struct sock *)args[0], socket_moved((struct sock *)args[0], args[1], false), args[1], 0, TAP_WRITE);
	return 0;
}

SEC("tp_btf/sock_recv_length")
int on_receive(__u64 *args)
{
	plain_moved((struct sock *)args[0], socket_moved((struct sock *)args[0], args[1], true), args[1], args[2], TAP_READ);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int on_state(__u64 *args)
{
	return socket_changed((struct sock *)args[0], args[2]);
}

SEC("tp_btf/sys_enter")
int on_sys_enter(__u64 *args)
{
	return system_call((struct pt_regs *)args[0], args[1]);
}

SEC("tp_btf/sched_process_fork")
int on_fork(__u64 *args)
{
	return process_forked((void *)args[0], (void *)args[1]);
}

SEC("tp_btf/sched_process_exec")
int on_exec(__u64 *args)
{
	return process_started((void *)args[0]);
}

SEC("tp_btf/sched_process_exit")
int on_exit(__u64 *args)
{
	return process_ended((void *)args[0]);
}
