/**
 * What each of Linux's KVM selftests is expected to do on the modelled machine, with the reason: everything passes that is
 * not listed here. Names are those of 7.3 and 6.12; 7.2 has those of 7.3.
 */
export type Outcome = 'pass' | 'skip' | 'fail' | 'timeout'

export interface Expectation {
  /** Default pass; `left-out`: not run. */
  readonly outcome?: Outcome | 'left-out'
  readonly why?: string
  readonly args?: readonly string[]
  readonly seconds?: number
}

type Table = Readonly<Record<string, Expectation>>

function all(outcome: Expectation['outcome'], why: string, names: string): Table {
  return Object.fromEntries(names.split(/\s+/).map((name) => [name, { ...(outcome === undefined ? {} : { outcome }), why }]))
}

const COMMON: Table = {
  ...all(
    'skip',
    'nested virtualisation is not offered',
    `evmcs_smm_controls_test hyperv_evmcs hyperv_svm_test nested_close_kvm_test nested_dirty_log_test nested_exceptions_test
    nested_invalid_cr3_test nested_set_state_test nested_tdp_fault_test nested_tsc_adjust_test nested_tsc_scaling_test
    nested_vmsave_vmload_test nested_x2apic_test svm_int_ctl_test svm_lbr_nested_state svm_nested_clear_efer_svme
    svm_nested_pat_test svm_nested_shutdown_test svm_nested_soft_inject_test svm_nested_vmcb12_gpa svm_pmu_host_guest_test
    svm_vmcall_test triple_fault_event_test vmx_apic_access_test vmx_apicv_updates_test vmx_close_while_nested_test
    vmx_dirty_log_test vmx_invalid_nested_guest_state vmx_msrs_test vmx_nested_la57_state_test vmx_nested_tsc_scaling_test
    vmx_preemption_timer_test vmx_set_nested_state_test vmx_tsc_adjust_test`,
  ),
  ...all(
    'skip',
    'Hyper-V enlightenments are not offered',
    'hyperv_clock hyperv_cpuid hyperv_extended_hypercalls hyperv_features hyperv_ipi hyperv_tlb_flush',
  ),
  ...all('skip', 'Xen hypercalls are not offered', 'xen_shinfo_test xen_vmcall_test'),
  ...all('skip', 'no PMU is offered', 'pmu_counters_test pmu_event_filter_test vmx_pmu_caps_test'),
  ...all('skip', 'forced emulation is a debugging parameter of kvm.ko', 'fastops_test nested_emulation_test'),
  ...all('skip', 'the CPU has no AMX', 'amx_test'),
  ...all('skip', 'the CPU has no XSAVES', 'xss_msr_test'),
  ...all('skip', 'the CPU has no MONITOR', 'monitor_mwait_test'),
  ...all('skip', 'bus lock exits are not offered', 'kvm_buslock_test'),
  ...all('skip', 'guests with a smaller MAXPHYADDR are not offered, as with NPT', 'smaller_maxphyaddr_emulation_test'),
  ...all('skip', 'MCG_CMCI_P is not offered, as on AMD', 'ucna_injection_test'),
  ...all('skip', 'a VMX exit, wants an Intel host', 'vmx_exception_with_invalid_guest_state'),
  ...all('skip', 'wants a file of this machine: idle page tracking, /dev/cpu/N/msr, huge pages', 'access_tracking_perf_test'),
  ...all('skip', "wants this machine's /dev/cpu/N/msr", 'aperfmperf_test'),
  ...all('skip', 'wants huge pages of this machine', 'dirty_log_page_splitting_test nx_huge_pages_test'),
  ...all('fail', 'the arenas of 1024 vCPUs do not fit into the 4 GiB of a device', 'kvm_create_max_vcpus recalc_apic_map_test'),
  ...all('fail', "compares the guest's TSC with the physical one: time is virtual", 'system_counter_offset_test'),
  ...all('fail', 'wants as much stolen time as the thread really waited: nobody steals virtual time', 'steal_time'),
  ...all('fail', 'its guest executes AVX, which the CPU does not offer', 'state_test'),
  ...all(
    'left-out',
    'kills its child in the middle of a call 512 times, which the FIFO of the shim does not survive',
    'hardware_disable_test',
  ),
  ...all('left-out', 'protects client memory by mprotect, which reaches the kernel but no page of the core', 'mmu_stress_test'),
  ...all('left-out', 'runs until the TSCs of 20 vCPUs have met at 10 s of virtual time: many minutes', 'tsc_scaling_sync'),
  rseq_test: { args: ['-u'], why: 'without the check of the speed' },
  memslot_perf_test: { args: ['-l', '1', '-s', '128'], why: 'short' },
  apic_bus_clock_test: { args: ['-d', '5'], why: '5 ms of each divisor' },
  max_guest_memory_test: { args: ['-c', '1', '-m', '2'], why: '2 GiB', seconds: 300 },
  set_memory_region_test: { seconds: 300, why: '32764 slots' },
}

const OF: Readonly<Record<string, Table>> = {
  '7.3': all('fail', 'SEV and SEV-ES pass; SNP guests do not run yet', 'sev_smoke_test'),
  '6.12': all('fail', 'SEV and SEV-ES pass; then it wants AVX for the VMSA, and SNP guests', 'sev_smoke_test'),
}

const INTEL: Table = {
  ...all('skip', 'SEV is of AMD hosts', 'sev_dbg_test sev_init2_tests sev_migrate_tests sev_smoke_test'),
  ...all('fail', 'the hypercall instruction of an ordinary VM is VMMCALL on both hosts', 'fix_hypercall_test'),
  ...all('fail', 'open: IA32_MCi_CTL2 gives #GP inside of the guest, and no CMCI is raised', 'ucna_injection_test'),
}

export function expectations(host: 'amd' | 'intel', linux: '6.12' | '7.3'): Table {
  return { ...COMMON, ...OF[linux], ...(host === 'intel' ? INTEL : {}) }
}
