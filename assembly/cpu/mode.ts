/** Derived mode state. STUB: system room. */
/** After any change of CR0, CR4, EFER, CS, SS, CPL, RFLAGS.VM/AC/TF: recomputes MODE, RIP_MASK, STACK_MASK, TLB_BASE and JUMP_KEY. */
export function updateMode(s: usize): void { }
/** Power-on/INIT state (`init` = true keeps what INIT keeps). */
export function resetCpu(s: usize, init: bool): void { }
