// What lies between Swift and C: handles that are closed once, texts that live during a call, threads for calls that block.
import CDollop
import Foundation

/// A value behind a lock.
final class Protected<Value>: @unchecked Sendable {
    // Unchecked: the value is reached through the lock alone.
    private let lock = NSLock()
    private var value: Value

    init(_ value: Value) { self.value = value }

    func callAsFunction<Result>(_ body: (inout Value) throws -> Result) rethrows -> Result {
        lock.lock()
        defer { lock.unlock() }
        return try body(&value)
    }
}

/// Owns a handle. The C side finds out a closed handle without reading memory that is gone, and a call that runs keeps what it
/// needs, so closing may race with any call.
final class Handle: Sendable {
    private let open: Protected<OpaquePointer?>
    private let name: String
    private let free: @Sendable (OpaquePointer) -> Void

    /// Takes what `make` writes.
    init(
        _ name: String, free: @escaping @Sendable (OpaquePointer) -> Void,
        make: (UnsafeMutablePointer<OpaquePointer?>) throws -> Void
    ) throws {
        var made: OpaquePointer?
        try make(&made)
        self.open = Protected(made)
        self.name = name
        self.free = free
    }

    func get() throws -> OpaquePointer {
        guard let handle = open({ $0 }) else {
            throw DollopError(status: .closed, message: "the \(name) is closed")
        }
        return handle
    }

    /// Any number of times, from any thread.
    func close() {
        let closing = open { handle in
            defer { handle = nil }
            return handle
        }
        closing.map(free)
    }

    deinit { close() }
}

/// Memory for the texts and arrays of one call. They live as long as this.
final class Arena {
    private var allocations: [UnsafeMutableRawPointer] = []

    func text(_ text: String, _ name: String) throws -> UnsafePointer<CChar> {
        // C would take a NUL for the end.
        if text.utf8.contains(0) {
            throw DollopError(status: .invalid, message: "\(name) contains a NUL")
        }
        let bytes = Array(text.utf8CString)
        return array(bytes)
    }

    func optionalText(_ text: String?, _ name: String) throws -> UnsafePointer<CChar>? {
        try text.map { try self.text($0, name) }
    }

    /// A path as the system spells it.
    func path(_ url: URL, _ name: String) throws -> UnsafePointer<CChar> {
        guard url.isFileURL else {
            throw DollopError(status: .invalid, message: "\(name): \(url.absoluteString) is no file URL")
        }
        return try text(url.path, name)
    }

    func texts(_ texts: [String], _ name: String) throws -> UnsafePointer<UnsafePointer<CChar>?> {
        array(try texts.map { try text($0, name) as UnsafePointer<CChar>? })
    }

    /// Never NULL, also where there are no elements.
    func array<Element>(_ elements: [Element]) -> UnsafePointer<Element> {
        let to = UnsafeMutablePointer<Element>.allocate(capacity: max(elements.count, 1))
        allocations.append(UnsafeMutableRawPointer(to))
        to.initialize(from: elements, count: elements.count)
        return UnsafePointer(to)
    }

    deinit {
        // Numbers and pointers: nothing in them is to be destroyed.
        allocations.forEach { $0.deallocate() }
    }
}

/// A text that a call writes.
func takeText(_ call: (UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>) throws -> Void) throws -> String {
    var text: UnsafeMutablePointer<CChar>?
    defer { dollop_text_free(text) }
    try call(&text)
    return text.map { String(cString: $0) } ?? ""
}

/// A JSON text that a call writes, decoded. Keys are in snake case.
func takeJSON<Value: Decodable>(
    _ type: Value.Type, _ call: (UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>) throws -> Void
) throws -> Value {
    let text = try takeText(call)
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    do {
        return try decoder.decode(type, from: Data(text.utf8))
    } catch {
        throw DollopError(status: .other, message: "\(type) from the library's JSON: \(error)")
    }
}

/// A number for C.
func number<To: FixedWidthInteger>(_ value: Int, _ name: String) throws -> To {
    guard let number = To(exactly: value) else {
        throw DollopError(status: .invalid, message: "\(name) \(value): it must be \(To.min) to \(To.max)")
    }
    return number
}

/// Runs `body` on a thread of its own, where it may block and compute for as long as it likes: never on the threads of Swift's
/// cooperative pool, which are few. The stack is as large as a main thread's; the default would be 512 KB on Apple's systems.
func startThread(_ name: String, _ body: @escaping @Sendable () -> Void) {
    let thread = Thread(block: body)
    thread.name = "dev.dollop.\(name)"
    thread.stackSize = 8 << 20
    thread.qualityOfService = .userInitiated
    thread.start()
}

/// What `body` returns on such a thread.
func onThread<Value: Sendable>(
    _ name: String, _ body: @escaping @Sendable () throws -> Value
) async throws -> Value {
    try await withCheckedThrowingContinuation { continuation in
        startThread(name) { continuation.resume(with: Result(catching: body)) }
    }
}
