# An SEV-ES guest with its own #VC handler (APM vol. 2 section 15.35; GHCB specification, protocol 1).
# Linked and loaded at 0x200000, entered in long mode at its first byte with this image mapped private.
# It brings its own page tables, GDT and IDT, so it does not care who started it: all memory private
# (C-bit 51) but the GHCB page at 0x300000.
#
#   1. GHCB MSR protocol: SEV information; CPUID, asked by the #VC handler one register at a time
#   2. GHCB page: OUT, REP OUTSB through the shared buffer, CPUID, RDMSR
#   3. a secret in memory and in R12-R15, then HLT: what does the host see?
#   4. when resumed: termination request
.intel_syntax noprefix
.code64

.set CBIT, 51
.set GHCB, 0x300000
.set MSR_GHCB, 0xc0010130
.set MSR_SEV_STATUS, 0xc0010131
.set MSR_APIC_BASE, 0x1b

.set EXIT_CPUID, 0x72
.set EXIT_IOIO, 0x7b
.set EXIT_MSR, 0x7c

# GHCB page offsets
.set G_RAX, 0x1f8
.set G_RCX, 0x308
.set G_RDX, 0x310
.set G_RBX, 0x318
.set G_CODE, 0x390
.set G_INFO1, 0x398
.set G_INFO2, 0x3a0
.set G_SCRATCH, 0x3a8
.set G_XCR0, 0x3e8
.set G_VALID, 0x3f0
.set G_SHARED, 0x800
.set G_VERSION, 0xffa
.set SHARED_BYTES, 2032

# valid-bitmap bytes: bit = offset / 8
.set V_RAX, 7			# bit 63
.set V_RCX_RDX_RBX, 12		# bits 97, 98, 99
.set V_EXIT, 14			# bits 114-117
.set V_XCR0, 15			# bit 125

.macro VMGEXIT
	.byte	0xf3, 0x0f, 0x01, 0xd9
.endm

.globl _start
_start:
	lea	rsp, [rip + stack_end]
	lea	rax, [rip + pml4]
	mov	cr3, rax
	lgdt	[rip + gdtr]
	lea	rax, [rip + in_own_segment]
	push	8
	push	rax
	retfq
in_own_segment:
	# vector 29, interrupt gate
	lea	rdi, [rip + idt + 29 * 16]
	lea	rax, [rip + vc_handler]
	mov	[rdi], ax
	mov	word ptr [rdi + 2], 8
	mov	word ptr [rdi + 4], 0x8e00
	shr	rax, 16
	mov	[rdi + 6], ax
	shr	rax, 16
	mov	[rdi + 8], eax
	lidt	[rip + idtr]

	# 1. MSR protocol: 0x002 asks for SEV information; 0x001 answers.
	mov	ecx, MSR_GHCB
	mov	eax, 2
	xor	edx, edx
	wrmsr
	VMGEXIT
	rdmsr
	mov	[rip + sev_info], eax
	mov	[rip + sev_info + 4], edx
	and	eax, 0xfff
	cmp	eax, 1
	jne	terminate

	# CPUID raises #VC; the handler has no GHCB page yet and uses the MSR protocol.
	mov	eax, 0x8000001f
	xor	ecx, ecx
	cpuid
	mov	[rip + leaf_1f], eax
	and	ebx, 0x3f
	cmp	ebx, CBIT
	jne	terminate

	# 2. The GHCB page: mapped shared, so the first write may not assume zeros.
	mov	edi, GHCB
	mov	ecx, 512
	xor	eax, eax
	cld
	rep	stosq
	mov	word ptr [GHCB + G_VERSION], 1
	mov	ecx, MSR_GHCB
	mov	eax, GHCB
	xor	edx, edx
	wrmsr
	mov	byte ptr [rip + have_ghcb], 1

	lea	rsi, [rip + hello]
	call	print
	lea	rsi, [rip + line_status]
	call	print
	mov	ecx, MSR_SEV_STATUS	# never intercepted
	rdmsr
	call	print_hex
	lea	rsi, [rip + line_protocol]
	call	print
	movzx	eax, word ptr [rip + sev_info + 4]
	call	print_hex
	lea	rsi, [rip + line_to]
	call	print
	movzx	eax, word ptr [rip + sev_info + 6]
	call	print_hex
	lea	rsi, [rip + newline]
	call	print

	xor	eax, eax		# CPUID through the page now
	xor	ecx, ecx
	cpuid
	lea	rdi, [rip + vendor]
	mov	[rdi], ebx
	mov	[rdi + 4], edx
	mov	[rdi + 8], ecx
	lea	rsi, [rip + vendor_line]
	mov	ecx, vendor_end - vendor_line
	mov	dx, 0x3f8
	rep	outsb			# string I/O through the shared buffer

	lea	rsi, [rip + line_apic]
	call	print
	mov	ecx, MSR_APIC_BASE	# intercepted by KVM: #VC 0x7c
	rdmsr
	call	print_hex
	lea	rsi, [rip + newline]
	call	print

	# 3. Secrets, then halt.
	lea	rsi, [rip + line_secret]
	call	print
	mov	r12, 0x5ec2e75ec2e70001
	mov	r13, 0x5ec2e75ec2e70002
	mov	r14, 0x5ec2e75ec2e70003
	mov	r15, 0x5ec2e75ec2e70004
	hlt

	# 4. Termination request: set 0, code 0.
terminate:
	mov	ecx, MSR_GHCB
	mov	eax, 0x100
	xor	edx, edx
	wrmsr
	VMGEXIT
1:	hlt
	jmp	1b

# Prints the zero-terminated text at RSI on COM1; every OUT raises #VC.
print:
	mov	dx, 0x3f8
1:	lodsb
	test	al, al
	jz	2f
	out	dx, al
	jmp	1b
2:	ret

# Prints EAX in hexadecimal.
print_hex:
	mov	ebx, eax
	mov	ecx, 8
	mov	dx, 0x3f8
1:	rol	ebx, 4
	mov	al, bl
	and	al, 15
	add	al, '0'
	cmp	al, '9'
	jbe	2f
	add	al, 'a' - '0' - 10
2:	out	dx, al
	dec	ecx
	jnz	1b
	ret

# #VC: error code = SVM exit code. Frame after the pushes:
.set F_RAX, 0
.set F_RCX, 8
.set F_RDX, 16
.set F_RBX, 24
.set F_RSI, 32
.set F_RDI, 40
.set F_R8, 48
.set F_ERROR, 56
.set F_RIP, 64
vc_handler:
	push	r8
	push	rdi
	push	rsi
	push	rbx
	push	rdx
	push	rcx
	push	rax
	mov	rax, [rsp + F_ERROR]
	cmp	eax, EXIT_CPUID
	je	vc_cpuid
	cmp	eax, EXIT_IOIO
	je	vc_ioio
	cmp	eax, EXIT_MSR
	je	vc_msr
	jmp	terminate
vc_done:			# R8 = length of the instruction
	add	[rsp + F_RIP], r8
vc_return:
	pop	rax
	pop	rcx
	pop	rdx
	pop	rbx
	pop	rsi
	pop	rdi
	pop	r8
	add	rsp, 8
	iretq

vc_cpuid:
	mov	r8d, 2
	cmp	byte ptr [rip + have_ghcb], 0
	je	cpuid_by_msr
	call	ghcb_begin
	mov	rax, [rsp + F_RAX]
	mov	[rdi + G_RAX], rax
	mov	rcx, [rsp + F_RCX]
	mov	[rdi + G_RCX], rcx
	or	byte ptr [rdi + G_VALID + V_RAX], 0x80
	or	byte ptr [rdi + G_VALID + V_RCX_RDX_RBX], 0x02
	cmp	eax, 0xd		# the leaf that depends on XCR0
	jne	1f
	mov	qword ptr [rdi + G_XCR0], 1
	or	byte ptr [rdi + G_VALID + V_XCR0], 0x20
1:	mov	eax, EXIT_CPUID
	xor	ecx, ecx
	xor	edx, edx
	call	ghcb_call
	mov	eax, [rdi + G_RAX]
	mov	[rsp + F_RAX], rax
	mov	eax, [rdi + G_RBX]
	mov	[rsp + F_RBX], rax
	mov	eax, [rdi + G_RCX]
	mov	[rsp + F_RCX], rax
	mov	eax, [rdi + G_RDX]
	mov	[rsp + F_RDX], rax
	jmp	vc_done
# Code 0x004: function in 63:32, register in 31:30 (0 EAX, 1 EBX, 2 ECX, 3 EDX); answer 0x005, value in 63:32.
cpuid_by_msr:
	mov	esi, [rsp + F_RAX]
	xor	ebx, ebx
1:	mov	ecx, MSR_GHCB
	mov	eax, ebx
	shl	eax, 30
	or	eax, 4
	mov	edx, esi
	wrmsr
	VMGEXIT
	rdmsr
	and	eax, 0xfff
	cmp	eax, 5
	jne	terminate
	lea	rdi, [rip + cpuid_answers]
	mov	[rdi + rbx * 4], edx
	inc	ebx
	cmp	ebx, 4
	jb	1b
	mov	eax, [rdi]
	mov	[rsp + F_RAX], rax
	mov	eax, [rdi + 4]
	mov	[rsp + F_RBX], rax
	mov	eax, [rdi + 8]
	mov	[rsp + F_RCX], rax
	mov	eax, [rdi + 12]
	mov	[rsp + F_RDX], rax
	jmp	vc_done

vc_msr:
	mov	r8d, 2
	call	ghcb_begin
	mov	rcx, [rsp + F_RCX]
	mov	[rdi + G_RCX], rcx
	or	byte ptr [rdi + G_VALID + V_RCX_RDX_RBX], 0x02
	mov	rbx, [rsp + F_RIP]
	xor	ecx, ecx		# information 1: 0 read, 1 write
	cmp	byte ptr [rbx + 1], 0x30
	jne	1f
	mov	rax, [rsp + F_RAX]
	mov	[rdi + G_RAX], rax
	mov	rdx, [rsp + F_RDX]
	mov	[rdi + G_RDX], rdx
	or	byte ptr [rdi + G_VALID + V_RAX], 0x80
	or	byte ptr [rdi + G_VALID + V_RCX_RDX_RBX], 0x04
	inc	ecx
1:	mov	ebx, ecx
	mov	eax, EXIT_MSR
	xor	edx, edx
	call	ghcb_call
	test	ebx, ebx
	jnz	vc_done
	mov	eax, [rdi + G_RAX]
	mov	[rsp + F_RAX], rax
	mov	eax, [rdi + G_RDX]
	mov	[rsp + F_RDX], rax
	jmp	vc_done

# OUT DX, AL (EE) and REP OUTSB (F3 6E) are what this guest uses.
vc_ioio:
	mov	rbx, [rsp + F_RIP]
	cmp	byte ptr [rbx], 0xee
	je	vc_out
	cmp	word ptr [rbx], 0x6ef3
	je	vc_outs
	jmp	terminate
vc_out:
	mov	r8d, 1
	call	ghcb_begin
	mov	rax, [rsp + F_RAX]
	mov	[rdi + G_RAX], rax
	or	byte ptr [rdi + G_VALID + V_RAX], 0x80
	movzx	ecx, word ptr [rsp + F_RDX]
	shl	ecx, 16
	or	ecx, 0x10 | 0x200	# 8 bits, 64-bit addresses
	mov	eax, EXIT_IOIO
	xor	edx, edx
	call	ghcb_call
	jmp	vc_done
vc_outs:
	call	ghcb_begin
	mov	rsi, [rsp + F_RSI]
	mov	rcx, [rsp + F_RCX]
	mov	eax, SHARED_BYTES
	cmp	rcx, rax
	cmova	rcx, rax
	mov	rdx, rcx		# information 2: elements
	add	[rsp + F_RSI], rcx
	sub	[rsp + F_RCX], rcx
	lea	rdi, [rdi + G_SHARED]
	rep	movsb
	mov	edi, GHCB
	lea	rax, [rdi + G_SHARED]
	mov	[rdi + G_SCRATCH], rax
	or	byte ptr [rdi + G_VALID + V_EXIT], 0x20
	movzx	ecx, word ptr [rsp + F_RDX]
	shl	ecx, 16
	or	ecx, 0x04 | 0x08 | 0x10 | 0x200 | (3 << 10)	# string, REP, 8 bits, 64-bit addresses, DS
	mov	eax, EXIT_IOIO
	call	ghcb_call
	cmp	qword ptr [rsp + F_RCX], 0
	jne	vc_return		# more to do: the instruction runs again
	mov	r8d, 2
	jmp	vc_done

# RDI = the GHCB, its valid bitmap cleared.
ghcb_begin:
	mov	edi, GHCB
	mov	qword ptr [rdi + G_VALID], 0
	mov	qword ptr [rdi + G_VALID + 8], 0
	mov	qword ptr [rdi + G_CODE], 0
	ret
# EAX = exit code, RCX and RDX = information 1 and 2. Anything but success is the end.
ghcb_call:
	mov	[rdi + G_CODE], rax
	mov	[rdi + G_INFO1], rcx
	mov	[rdi + G_INFO2], rdx
	or	byte ptr [rdi + G_VALID + V_EXIT], 0x1c
	VMGEXIT
	cmp	dword ptr [rdi + G_INFO1], 0
	jne	terminate
	ret

hello:	.asciz	"Hello from an SEV-ES guest: every letter is a #VC and a GHCB exit.\n"
line_status: .asciz "SEV_STATUS "
line_protocol: .asciz ", GHCB protocol "
line_to: .asciz " to "
line_apic: .asciz "IA32_APIC_BASE, through the GHCB: "
line_secret: .asciz "My secret is in memory and in R12-R15; look for it.\n"
newline: .asciz "\n"
vendor_line: .ascii "CPUID, through the GHCB: "
vendor:	.ascii	"????????????\n"
vendor_end:
have_ghcb: .byte 0
	.balign	16, 0
sev_info: .quad 0
leaf_1f: .long	0
cpuid_answers: .long 0, 0, 0, 0
	.balign	16, 0
gdt:	.quad	0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtr:	.word	23
	.quad	gdt
idtr:	.word	32 * 16 - 1
	.quad	idt
	.balign	16, 0
secret:	.ascii	"PRIVATE: the host must not see these sixty-four bytes of text..."
	.balign	16, 0
idt:	.space	32 * 16, 0
	.space	1024, 0
stack_end:

# 0-2 MiB and 4 MiB-1 GiB by 2 MiB pages, 2-4 MiB by 4 KiB pages; C-bit everywhere but in the GHCB's entry.
	.balign	4096, 0
pml4:	.quad	(1 << CBIT) | 0x200003 + (pdpt - _start)
	.balign	4096, 0
pdpt:	.quad	(1 << CBIT) | 0x200003 + (pd - _start)
	.balign	4096, 0
pd:	.quad	(1 << CBIT) | 0x83
	.quad	(1 << CBIT) | 0x200003 + (pt - _start)
.set page, 0x400000
.rept 510
	.quad	(1 << CBIT) | 0x83 + page
.set page, page + 0x200000
.endr
.balign	4096, 0
pt:
.set page, 0x200000
.rept 512
.if page == GHCB
	.quad	page | 3
.else
	.quad	(1 << CBIT) | 3 + page
.endif
.set page, page + 0x1000
.endr
