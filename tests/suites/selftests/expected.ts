/** What each of Linux's KVM selftests is expected to do on the modelled machine: everything passes that is not listed. */
export type Outcome = 'pass' | 'skip' | 'fail' | 'timeout'

export interface Expectation {
  /** Default pass; `left-out`: not run. */
  readonly outcome?: Outcome | 'left-out'
  readonly why?: string
  readonly args?: readonly string[]
  readonly seconds?: number
}

export function expectations(_host: 'amd' | 'intel', _linux: '6.12' | '7.3'): Readonly<Record<string, Expectation>> {
  return {}
}
