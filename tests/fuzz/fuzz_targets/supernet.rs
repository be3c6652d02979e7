//! Supernets: any archive, and archives whose three arrays are any bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quantize::elastic::Supernet;
use quantize::npy::{encode, encode_archive};
use std::io::Write;

fn read(bytes: &[u8]) {
    if let Ok(mut file) = tempfile::NamedTempFile::new() {
        if file.write_all(bytes).is_ok() {
            let _ = Supernet::read(file.path());
        }
    }
}

fuzz_target!(|data: &[u8]| {
    read(data);
    let mut parts = data.splitn(3, |&b| b == 0xFF);
    let mut part = || parts.next().unwrap_or_default();
    let (options, steps, network) = (part(), part(), part());
    let steps = &steps[..steps.len() / 4 * 4];
    let arrays = [
        ("network.onnx".to_string(), encode("|u1", &[network.len()], network)),
        ("elastic.json".to_string(), encode("|u1", &[options.len()], options)),
        ("steps".to_string(), encode("<f4", &[steps.len() / 4], steps)),
        ("scale".to_string(), encode("<f4", &[0], &[])),
        ("bias".to_string(), encode("<f4", &[0], &[])),
    ];
    if let Ok(archive) = encode_archive(&arrays) {
        read(&archive);
    }
});
