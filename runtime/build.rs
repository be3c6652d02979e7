//! Says which kernels the target has, where the compiler does not: stable rustc shows no `target_feature` for the DSP extension of Cortex-M.

use std::env;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(pith_dsp, pith_v6m, pith_v7m)");
    let target = env::var("TARGET").unwrap_or_default();
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    // Cortex-M33 and M55 have it as an option, which only the user's flags can tell.
    let dsp = target.starts_with("thumbv7em")
        || target.starts_with("thumbv8m.main")
            && ["target-cpu=cortex-m33", "target-cpu=cortex-m55", "+dsp"].iter().any(|f| flags.contains(f));
    let set = match target.split('-').next().unwrap_or_default() {
        _ if dsp => "pith_dsp",
        "thumbv6m" => "pith_v6m",
        "thumbv7m" | "thumbv8m.main" => "pith_v7m",
        _ => return,
    };
    println!("cargo::rustc-cfg={set}");
}
