/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/* tap.bpf.c's counterpart for bcc: the same bodies; what cookies tell there, the program's name tells here. */
#include "bcc.h"
#include "records.h"
#include "sockets.h"
#include "tls_io.h"
#include "processes.h"

int tls_read(struct pt_regs *regs) { return call_entered(regs, 0); }
int tls_write(struct pt_regs *regs) { return call_entered(regs, TAP_COOKIE_WRITE); }
int tls_read_ex(struct pt_regs *regs) { return call_entered(regs, TAP_COOKIE_SIZE_OUT); }
int tls_write_ex(struct pt_regs *regs) { return call_entered(regs, TAP_COOKIE_WRITE | TAP_COOKIE_SIZE_OUT); }
int tls_return(struct pt_regs *regs) { return call_returned(regs); }
int tls_new(struct pt_regs *regs) { return connection_opened(regs); }
int tls_free(struct pt_regs *regs) { return connection_freed(REG_FIRST(regs)); }
int go_read(struct pt_regs *regs) { return go_entered(regs, 0); }
int go_write(struct pt_regs *regs) { return go_entered(regs, TAP_COOKIE_WRITE); }
int go_return(struct pt_regs *regs) { return go_returned(regs); }
int go_close(struct pt_regs *regs) { return connection_freed(GO_FIRST(regs)); }
int on_libraries(struct pt_regs *regs) { return libraries_changed(); }
int on_send(struct bpf_raw_tracepoint_args *args) { return socket_moved((struct sock *)args->args[0], args->args[1], false); }
int on_receive(struct bpf_raw_tracepoint_args *args) { return socket_moved((struct sock *)args->args[0], args->args[1], true); }
int on_sys_enter(struct bpf_raw_tracepoint_args *args) { return system_call((struct pt_regs *)args->args[0], args->args[1]); }
int on_fork(struct bpf_raw_tracepoint_args *args) { return process_forked((void *)args->args[0], (void *)args->args[1]); }
int on_exec(struct bpf_raw_tracepoint_args *args) { return process_started((void *)args->args[0]); }
int on_exit(struct bpf_raw_tracepoint_args *args) { return process_ended((void *)args->args[0]); }
