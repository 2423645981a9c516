/** Exports of the memory room. */
export { flushEverywhere } from './tlb'
