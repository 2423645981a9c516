# Four guests that never end, for tests/engine/budget.test.ts: what they do is a little of everything that can stop, fault or be
# interrupted. Linked at 0x10000; the words at the beginning are where each guest and its handlers are.
.intel_syntax noprefix
.globl _start
.set BASE, 0x10000
.set DATA, 0x100000		# two megabytes mapped by 4 KiB pages
.set TABLE, 0x60000		# their page table
_start:
	.long	real16, real_divide, real_int, 0
	.long	prot32, prot_fault, prot_int, prot_divide
	.long	long64, long_fault, long_int, long_divide
	.long	irq64, irq_timer, irq_pit, long_step

# --- Real mode, CS = DS = 0x1000, SS = 0x2000, SP = 0x8000.
.code16
.set R, _start
	.org	0x100
real16:
	cld
	mov	ax, 0x1000
	mov	ds, ax
	mov	ax, 0x3000
	mov	es, ax
	xor	bp, bp
1:	mov	si, 0x100
	mov	di, 0xfff9
	mov	cx, 13
	rep movsb			# wraps round the segment
	mov	di, 0x0ffd
	mov	cx, 5
	mov	ax, bp
	rep stosw
	mov	di, 0x0ff8
	mov	cx, 20
	repne scasb
	mov	si, 0x100
	mov	di, 0xfff9
	mov	cx, 9
	repe cmpsb
	lodsw
	pushf
	pusha
	enter	8, 2
	mov	[bp - 4], ax
	leave
	popa
	popf
	mov	al, 0x37
	add	al, 0x48
	daa
	aaa
	aam
	aad
	das
	mov	bx, 0x100
	xlatb
	cmp	bp, 3
	jne	4f
	xor	cl, cl			# a divide fault; its handler repairs CL
4:	or	cl, 1
	mov	ax, 0x1234
	test	bp, 7
	jnz	5f
	xor	cx, cx
5:	div	cl
	int	0x21
	push	cs
	call	near ptr 6f
	jmp	7f
6:	mov	dx, ss
	mov	ss, dx
	mov	sp, sp
	retf
7:	mov	word ptr [real_patch + 1 - R], bp
real_patch:
	mov	dx, 0x5555		# its own operand was just stored
	add	word ptr es:[0x0fff], dx
	rol	word ptr es:[0x1fff], 3
	lds	si, [real_pointer - R]
	push	cs
	pop	ds
	pushf				# one instruction with the trap flag
	pop	ax
	inc	bp
	mov	cx, 3
8:	loop	8b
	jmp	1b
real_pointer:
	.word	0x200, 0x3000
real_divide:
	mov	cl, 7
	iret
real_int:
	push	bp
	mov	bp, sp
	xor	byte ptr [bp + 6], 1	# the caller's CF
	pop	bp
	iret

# --- Protected mode with 32-bit paging, CPL 0 and 3.
.code32
	.org	0x4000
prot32:
	cld
	xor	ebp, ebp
1:	mov	esi, offset _start
	mov	edi, DATA + 0xffe
	mov	ecx, 9
	rep movsd			# faults in the middle
	mov	edi, DATA + 0x2ffd
	mov	al, 0x5a
	mov	ecx, 6
	rep stosb
	pushad
	popad
	enter	16, 3
	leave
	fninit
	fild	dword ptr [DATA + 0x1000]
	fld1
	fadd	st, st(1)
	fsqrt
	fistp	dword ptr [DATA + 0x1ffe]
	fstp	st(0)
	mov	eax, cr0
	mov	cr0, eax
	bts	dword ptr [DATA + 0x3000], 77
	lock xadd	[DATA + 0x3ffe], ebp
	and	ebp, 0xffff
	xor	edx, edx
	mov	eax, 1000
	mov	ecx, ebp
	and	ecx, 3
	div	ecx			# by zero every fourth time
	push	gs
	push	fs
	pop	gs
	pop	fs
	mov	ax, ss
	mov	ss, ax
	lea	esp, [esp]
	mov	byte ptr [prot_patch + 1], dl
prot_patch:
	mov	al, 0x11
	add	[DATA + 0x4fff], eax
	# To CPL 3 and back by INT 0x80.
	push	0x1b
	push	DATA + 0x8000
	push	2
	push	0x23
	push	offset prot_user
	iretd
prot_user:
	push	eax
	pushfd
	pop	ebx
	pop	ecx
	mov	[DATA + 0x6ffd], ecx
	lea	eax, [ecx * 4 + ebx]
	int	0x80
	ud2
prot_back:
	# The pages go away again.
	mov	eax, TABLE + 0x400
	mov	ecx, 9
2:	and	dword ptr [eax], 0xfffffffe
	add	eax, 4
	loop	2b
	mov	eax, cr3
	mov	cr3, eax
	inc	ebp
	jmp	1b
prot_fault:
	push	eax
	mov	eax, cr2
	shr	eax, 12
	or	dword ptr [eax * 4 + TABLE], 1
	pop	eax
	add	esp, 4
	iretd
prot_int:
	add	esp, 20
	mov	ax, 0x10
	mov	ds, ax
	mov	es, ax
	jmp	prot_back
prot_divide:
	mov	ecx, 7
	iretd

# --- Long mode, CPL 0 and 3.
.code64
	.org	0x8000
long64:
	cld
	xor	ebp, ebp
1:	lea	rsi, [rip + _start]
	mov	edi, DATA + 0xffc
	mov	ecx, 9
	rep movsq			# faults in the middle
	mov	edi, DATA + 0x2ffd
	mov	eax, ebp
	mov	ecx, 11
	rep stosb
	mov	edi, DATA + 0x2ffd
	mov	ecx, 30
	repe scasb
	std
	mov	esi, DATA + 0x1006
	mov	edi, DATA + 0x1803
	mov	ecx, 12
	rep movsb
	cld
	movups	xmm0, [DATA + 0xff9]
	pshufd	xmm1, xmm0, 0x1b
	paddq	xmm0, xmm1
	movups	[DATA + 0x3ff5], xmm0	# two pages, either may be missing
	cvtsi2sd	xmm2, rbp
	sqrtsd	xmm2, xmm2
	movsd	[DATA + 0x4008], xmm2
	fild	qword ptr [DATA + 0x3000]
	fstp	tbyte ptr [DATA + 0x4ffb]
	mov	rax, [DATA + 0x5000]
	mov	rdx, [DATA + 0x5008]
	mov	rbx, rbp
	mov	rcx, rax
	lock cmpxchg16b	[DATA + 0x5000]
	lock xadd	[DATA + 0x5ffc], rbp
	and	ebp, 0xffff
	rcl	dword ptr [DATA + 0x5ffe], 5
	shld	[DATA + 0x5020], rax, 7
	push	qword ptr [DATA + 0x5ffd]
	pop	qword ptr [DATA + 0x6ffd]
	xor	edx, edx
	mov	eax, 1000
	mov	ecx, ebp
	and	ecx, 3
	div	ecx			# by zero every fourth time
	mov	byte ptr [rip + long_patch + 1], dl
long_patch:
	mov	al, 0x11
	mov	byte ptr [rip + long_other + 1], dl	# code on another page
	call	long_other
	mov	ax, ss
	mov	ss, ax
	lea	rsp, [rsp]
	# Five instructions with the trap flag, REP among them.
	pushfq
	or	dword ptr [rsp], 0x100
	popfq
	mov	ecx, 3
	lea	rdi, [DATA + 0x7000]
	rep stosq
	pushfq
	and	dword ptr [rsp], ~0x100
	popfq
	# To CPL 3 and back by INT 0x80.
	push	0x5b
	push	DATA + 0x8000
	push	2
	push	0x53
	lea	rax, [rip + long_user]
	push	rax
	iretq
long_user:
	push	rbp
	call	3f
	mov	[DATA + 0x6ffd], ecx
	int	0x80
	ud2
3:	mov	ecx, [rsp + 8]
	cmp	ecx, 5
	cmovb	ecx, edx
	setnz	bl
	ret	0
long_back:
	mov	eax, TABLE + 0x800
	mov	ecx, 9
2:	and	qword ptr [rax], 0xfffffffffffffffe
	add	rax, 8
	loop	2b
	mov	rax, cr3
	mov	cr3, rax
	inc	ebp
	jmp	1b
long_fault:
	push	rax
	mov	rax, cr2
	shr	rax, 12
	or	qword ptr [rax * 8 + TABLE], 1
	pop	rax
	add	rsp, 8
	iretq
long_int:
	add	rsp, 40
	jmp	long_back
long_divide:
	mov	ecx, 7
	iretq
long_step:
	inc	r15
	add	r14, [rsp]
	iretq
	.org	0x9004
long_other:
	mov	al, 0x11
	add	[DATA + 0x5030], al
	ret

# --- Long mode with the interrupts of a local APIC timer (vector 0x40) and of the PIT through the PIC (0x20).
	.org	0xa000
irq64:
	mov	al, 0x11
	out	0x20, al
	mov	al, 0x20
	out	0x21, al
	mov	al, 4
	out	0x21, al
	mov	al, 1
	out	0x21, al
	mov	al, 0xfe
	out	0x21, al
	mov	al, 0x34
	out	0x43, al
	mov	al, 3			# the PIT's 3 ticks are 200 us at least: half of it comes from the port accesses
	out	0x40, al
	xor	eax, eax
	out	0x40, al
	mov	ebx, 0xfee00000
	mov	dword ptr [rbx + 0xf0], 0x1ff
	mov	dword ptr [rbx + 0x3e0], 0xb
	mov	dword ptr [rbx + 0x320], 0x40	# one-shot: its handler starts it again
	mov	dword ptr [rbx + 0x380], 2049
	mov	dword ptr [rbx + 0x350], 0x700
	xor	ebp, ebp
	sti
1:	lea	rsi, [rip + _start]
	mov	edi, DATA + 0xffc
	mov	ecx, 17
	rep movsb
	mov	ax, ss
	mov	ss, ax
	lea	rsp, [rsp]
	cli
	inc	dword ptr [DATA + 0xffe]
	sti
	inc	dword ptr [DATA + 0x1ffe]
	cli
	mov	edi, DATA + 0x2ffd
	mov	ecx, 7
	rep stosb
	sti
	nop
	rdtsc
	xor	[DATA + 0x3008], eax
	call	2f
	push	rbp
	popfq				# IF off, or not
	sti
	inc	ebp
	and	ebp, 0x2d5
	test	ebp, 0x51
	jnz	1b
	hlt
	jmp	1b
2:	mov	eax, ebp
	in	al, 0x40
	xor	[DATA + 0x3000], eax
	ret
irq_timer:
	push	rax
	inc	r15
	mov	rax, [rsp + 8]
	add	r14, rax
	mov	eax, 0xfee00000
	mov	dword ptr [rax + 0xb0], 0
	mov	dword ptr [rax + 0x380], 1049
	pop	rax
	iretq
irq_pit:
	push	rax
	inc	r13
	mov	al, 0x20
	out	0x20, al
	pop	rax
	iretq
	.org	0xb000
