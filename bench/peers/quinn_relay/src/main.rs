//! A relay on quinn that does nothing but pair connections two by two, in the order in which they come, and pass
//! each one's DATAGRAMs on to the other: what such a relay costs in Rust. One thread.
//!
//! Usage: `quinn_relay ADDRESS:PORT CERTIFICATE.pem KEY.pem`; prints the address it listens on.
//! What cannot be sent (no counterpart, too large, closed) is dropped; quinn drops the oldest when its queue is full.

use quinn::{Connection, Endpoint, ServerConfig, TransportConfig};
use std::{error::Error, fs::File, io::BufReader, sync::Arc, time::Duration};

const ALPN: &[u8] = b"zrc-relay";
const QUEUE: usize = 1 << 20;

async fn forward(from: Connection, to: Connection) {
    while let Ok(payload) = from.read_datagram().await {
        let _ = to.send_datagram(payload);
    }
}

async fn relay(endpoint: Endpoint) {
    let mut waiting: Option<Connection> = None;
    while let Some(connecting) = endpoint.accept().await {
        if let Ok(connection) = connecting.await {
            match waiting.take() {
                Some(other) if other.close_reason().is_none() => {
                    tokio::spawn(forward(other.clone(), connection.clone()));
                    tokio::spawn(forward(connection, other));
                }
                _ => waiting = Some(connection),
            }
        }
    }
}

fn configuration(certificate: &str, key: &str) -> Result<ServerConfig, Box<dyn Error>> {
    let chain = rustls_pemfile::certs(&mut BufReader::new(File::open(certificate)?))?;
    let keys = rustls_pemfile::pkcs8_private_keys(&mut BufReader::new(File::open(key)?))?;
    let mut tls = rustls::ServerConfig::builder().with_safe_defaults().with_no_client_auth().with_single_cert(
        chain.into_iter().map(rustls::Certificate).collect(),
        rustls::PrivateKey(keys.into_iter().next().ok_or("no PKCS #8 key in the key file")?),
    )?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut transport = TransportConfig::default();
    transport.datagram_receive_buffer_size(Some(QUEUE)).datagram_send_buffer_size(QUEUE);
    transport.max_idle_timeout(Some(Duration::from_secs(60).try_into()?));
    let mut server = ServerConfig::with_crypto(Arc::new(tls));
    server.transport_config(Arc::new(transport));
    Ok(server)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.len() != 3 {
        return Err("usage: quinn_relay ADDRESS:PORT CERTIFICATE KEY".into());
    }
    let (address, server) = (&arguments[0], configuration(&arguments[1], &arguments[2])?);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let endpoint = Endpoint::server(server, address.parse()?)?;
        println!("listening on {}", endpoint.local_addr()?);
        relay(endpoint).await;
        Ok(())
    })
}
