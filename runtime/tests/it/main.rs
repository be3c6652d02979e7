//! The runtime against an independent reading of FORMAT.md, against random damage, and against golden files.

#[path = "../cases/mod.rs"]
mod cases;
mod damage;
mod golden;
mod lanes;
mod reference;

/// Random models of a test: `usual`, or at most as many as `PITH_ROUNDS` says where every instruction is dear.
fn rounds(usual: usize) -> usize {
    let most = if cfg!(miri) { 3 } else { usize::MAX };
    std::env::var("PITH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(most).min(usual)
}
