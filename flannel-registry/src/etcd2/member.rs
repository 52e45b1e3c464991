//! Requests to one member.

use std::time::Duration;

use flannel_core::{BoxError, chain};
use futures::FutureExt;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, LOCATION};
use hyper::{Method, Request, Response, StatusCode, Uri};
use tokio::time::timeout;

use super::connection::Connection;
use super::poll_reply::PollReply;
use super::request_counters::CallKind;
use super::response::{EtcdError, StoreHeaders};
use super::tls::tls_config;
use crate::etcd::TlsFiles;

/// The error text of a member without the v2 interface.
pub(crate) const NOT_SERVED: &str = "does not serve etcd's v2 interface";

/// A member of the cluster.
#[derive(Debug)]
pub(super) struct Member {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub(super) url: String,
    /// `HOST:PORT`, for the connection.
    address: String,
    /// The host alone if the member uses TLS.
    tls_name: Option<String>,
}

/// A request to etcd's v2 interface.
#[derive(Clone, Debug)]
pub(super) struct ApiRequest {
    pub(super) kind: CallKind,
    pub(super) method: Method,
    /// The path of the URL, with its query.
    pub(super) path: String,
    /// The body of a write.
    pub(super) form: Option<String>,
}

/// Options of all requests.
#[derive(Debug)]
pub(super) struct RequestOptions {
    pub(super) timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) files: TlsFiles,
}

/// Why a request to one member failed, by its consequence for the next member.
#[derive(Debug)]
pub(super) enum MemberError {
    /// The request was not sent.
    NotSent(BoxError),
    /// The request was sent; a write may have been applied.
    NoAnswer(BoxError),
    /// Nothing was applied: this member does not serve the interface or denies access, but another may.
    Refused(BoxError),
    /// Nothing was applied: an error of etcd, and the URL of the member.
    Etcd(EtcdError, String),
}

impl Member {
    /// Parses the URL of an endpoint. Errors name the defect.
    pub(super) fn new(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| chain(&error))?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or("it has no host")?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err("expected nothing after the port".to_owned());
        }
        let tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let address = format!("{host}:{port}");
        let tls_name = tls.then(|| bare.to_owned());
        Ok(Self { url: url.to_owned(), address, tls_name })
    }

    /// Sends a request on a new connection and reads the whole response.
    pub(super) async fn call(
        &self,
        request: &ApiRequest,
        options: &RequestOptions,
    ) -> Result<(StoreHeaders, Bytes), MemberError> {
        let mut connection = self.connect(options).await?;
        let exchange = async {
            let response = connection
                .send(self.http_request(request, options))
                .await
                .map_err(|error| self.no_answer(error.as_ref(), options))?;
            self.read_response(&mut connection, response, options).await
        };
        timeout(options.timeout, exchange).await.unwrap_or_else(|_| Err(self.timed_out(options.timeout)))
    }

    /// Sends a long poll. Returns the headers of a successful response, or a pending reply if they do not arrive in time.
    pub(super) async fn start_poll(
        &self,
        mut connection: Connection,
        request: &ApiRequest,
        options: &RequestOptions,
    ) -> Result<(StoreHeaders, PollReply), MemberError> {
        let http_request = self.http_request(request, options);
        let mut reply = async move {
            let response = connection.send(http_request).await;
            (connection, response)
        }
        .boxed();
        let Ok((mut connection, response)) = timeout(options.timeout, &mut reply).await else {
            return Ok((StoreHeaders::default(), PollReply::Pending(reply)));
        };
        let response = response.map_err(|error| self.no_answer(error.as_ref(), options))?;
        if response.status().is_success() {
            let headers = StoreHeaders::read(response.headers());
            return Ok((headers, PollReply::Body(connection, response.into_body())));
        }
        let read = self.read_response(&mut connection, response, options);
        match timeout(options.timeout, read).await.unwrap_or_else(|_| Err(self.timed_out(options.timeout))) {
            Ok(_) => Err(MemberError::NoAnswer(
                format!("{}: a response with an error status and a successful body", self.url).into(),
            )),
            Err(error) => Err(error),
        }
    }

    /// Opens a connection.
    pub(super) async fn connect(&self, options: &RequestOptions) -> Result<Connection, MemberError> {
        let open = async {
            let tls = self.tls_name.as_deref().map(|name| tls_config(&options.files, name)).transpose()?;
            Connection::open(&self.address, tls).await
        };
        match timeout(options.connect_timeout, open).await {
            Ok(opened) => {
                opened.map_err(|error| MemberError::NotSent(self.explain(error.as_ref(), options).into()))
            }
            Err(_) => {
                let limit = options.connect_timeout;
                Err(MemberError::NotSent(format!("{}: no connection within {limit:?}", self.url).into()))
            }
        }
    }

    fn http_request(&self, request: &ApiRequest, options: &RequestOptions) -> Request<Full<Bytes>> {
        let body = request.form.clone().unwrap_or_default();
        let mut http_request = Request::new(Full::new(Bytes::from(body)));
        *http_request.method_mut() = request.method.clone();
        // Paths consist of escaped parts.
        *http_request.uri_mut() = request.path.parse().unwrap_or_default();
        let headers = http_request.headers_mut();
        let authority = self.url.split_once("://").map_or("", |(_, authority)| authority);
        headers.insert(HOST, HeaderValue::from_str(authority).unwrap_or(HeaderValue::from_static("")));
        if request.form.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        }
        if let Some(authorization) = &options.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        http_request
    }

    /// Reads a response to its end and classifies it.
    async fn read_response(
        &self,
        connection: &mut Connection,
        response: Response<Incoming>,
        options: &RequestOptions,
    ) -> Result<(StoreHeaders, Bytes), MemberError> {
        let (status, headers) = (response.status(), StoreHeaders::read(response.headers()));
        let location = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).map(str::to_owned);
        let body = connection
            .read(response.into_body())
            .await
            .map_err(|error| self.no_answer(error.as_ref(), options))?;
        if status.is_success() && body.starts_with(b"{") {
            return Ok((headers, body));
        }
        Err(self.response_error(status, location.as_deref(), &body))
    }

    /// Classifies an unsuccessful response.
    fn response_error(&self, status: StatusCode, location: Option<&str>, body: &[u8]) -> MemberError {
        let url = &self.url;
        match EtcdError::parse(body) {
            Some(error) if error.is_raft_error() => MemberError::NoAnswer(format!("{url}: {error}").into()),
            Some(error) if error.code == EtcdError::UNAUTHORIZED => {
                MemberError::Refused(format!("{url}: {error}").into())
            }
            Some(error) => MemberError::Etcd(error, url.clone()),
            None if status.is_server_error() => {
                MemberError::NoAnswer(format!("{url}: HTTP status {status}").into())
            }
            None if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN => {
                MemberError::Refused(format!("{url}: HTTP status {status}{}", short_text(body)).into())
            }
            None => {
                let to = location.map(|to| format!(" to {to}")).unwrap_or_default();
                let reason = format!(
                    "{url} {NOT_SERVED} (HTTP status {status}{to}): etcd 2.3 to 3.3 serve it, 3.4 and \
                     3.5 only with --enable-v2=true, later versions not at all"
                );
                MemberError::Refused(reason.into())
            }
        }
    }

    fn no_answer(&self, error: &(dyn std::error::Error + 'static), options: &RequestOptions) -> MemberError {
        MemberError::NoAnswer(self.explain(error, options).into())
    }

    /// Returns an error's text with the member's URL and a hint at the certificate file that may have caused it.
    fn explain(&self, error: &(dyn std::error::Error + 'static), options: &RequestOptions) -> String {
        let reason = format!("{}: {}", self.url, chain(error));
        match self.tls_name.as_ref().and_then(|_| options.files.hint(&reason)) {
            Some(hint) => format!("{reason}; {hint}"),
            None => reason,
        }
    }

    fn timed_out(&self, limit: Duration) -> MemberError {
        MemberError::NoAnswer(format!("{}: no answer within {limit:?}", self.url).into())
    }
}

/// Returns the text of a response that is not from etcd, if it is short.
fn short_text(body: &[u8]) -> String {
    match std::str::from_utf8(body).map(str::trim) {
        Ok(text) if !text.is_empty() && text.len() <= 200 => format!(": {text}"),
        _ => String::new(),
    }
}
