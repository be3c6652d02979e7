//! CRC-32 (ISO-HDLC, as in zip and Ethernet), the checksum of model files: four bits a step over a table of 64 bytes.

const POLYNOMIAL: u32 = 0xEDB8_8320;

const NIBBLES: [u32; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 4 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

/// CRC-32 of `bytes`.
pub fn crc32(bytes: &[u8]) -> u32 {
    !update(u32::MAX, bytes)
}

/// CRC-32 of another checksum, little-endian, and `bytes`: what stands behind other data and is of no use behind any else.
pub fn crc32_behind(checksum: u32, bytes: &[u8]) -> u32 {
    !update(update(u32::MAX, &checksum.to_le_bytes()), bytes)
}

fn update(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, &byte| {
        let crc = crc ^ byte as u32;
        let crc = crc >> 4 ^ NIBBLES[(crc & 15) as usize];
        crc >> 4 ^ NIBBLES[(crc & 15) as usize]
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn check_value_of_the_catalogue() {
        assert_eq!(super::crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(super::crc32(b""), 0);
    }
}
