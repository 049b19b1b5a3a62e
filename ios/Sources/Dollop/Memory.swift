// Trims an engine when the system requests memory.
import CDollop
import Foundation

/// How much memory an engine gives back.
///
/// A level sets the size of the expert cache; it does not shrink it by an amount. So the same level twice has no further effect.
public enum TrimLevel: UInt32, Sendable, Hashable, CaseIterable, Comparable {
    /// The cache may use the whole budget.
    case normal = 0
    /// The smallest cache that works, plus half of what the budget allows beyond it.
    case moderate = 1
    /// The smallest cache that works, plus an eighth of what the budget allows beyond it.
    case critical = 2
    /// The smallest cache that works. Every expert that a token chooses is then read.
    case complete = 3

    /// Whether `a` keeps a larger cache than `b`.
    public static func < (a: TrimLevel, b: TrimLevel) -> Bool { a.rawValue < b.rawValue }
}

/// A change of memory pressure, or of the app between foreground and background.
public enum MemoryEvent: Sendable, Hashable, CaseIterable {
    /// Memory pressure is over.
    case pressureNormal
    /// Memory pressure: `DispatchSource.MemoryPressureEvent.warning`.
    case pressureWarning
    /// Memory pressure: `DispatchSource.MemoryPressureEvent.critical`, or `UIApplication.didReceiveMemoryWarningNotification`.
    case pressureCritical
    /// The app has entered the background, where the system first ends apps to free their memory.
    case enteredBackground
    /// The app is about to enter the foreground.
    case entersForeground
}

/// Computes the trim level from memory events: the higher one of the levels for memory pressure and for the background.
public struct MemoryPolicy: Sendable, Hashable {
    private var pressure = TrimLevel.normal
    private var background = false

    /// Creates a policy for an app in the foreground, without memory pressure.
    public init() {}

    /// The current level.
    public var level: TrimLevel { max(pressure, background ? .complete : .normal) }

    /// Records an event and returns the new level.
    public mutating func note(_ event: MemoryEvent) -> TrimLevel {
        switch event {
        case .pressureNormal: pressure = .normal
        case .pressureWarning: pressure = .moderate
        case .pressureCritical: pressure = .critical
        case .enteredBackground: background = true
        // UIKit does not report the end of a memory warning. If pressure persists, the system reports it again.
        case .entersForeground: (background, pressure) = (false, .normal)
        }
        return level
    }
}

/// Trims an engine when the system requests memory, as long as this object exists.
///
/// On Apple's systems it observes memory pressure. With UIKit, it also observes memory warnings and the app's changes between
/// foreground and background. On other systems, and in tests, pass events to ``note(_:)``.
///
/// A trim that fails is tried again after a second, then after ever longer pauses of at most a minute, until it succeeds or the
/// level changes. It is not tried again if the engine is closed or can never do it (``DollopError/Status/unsupported``).
public final class MemoryFollower: Sendable {
    /// The pauses before a failed trim is tried again, in seconds. The last one repeats.
    private static let pauses: [Double] = [1, 2, 4, 8, 16, 32, 60]

    private let policy: Protected<MemoryPolicy>
    private let events: AsyncStream<TrimLevel>.Continuation
    private let endListening = Protected<[() -> Void]>([])

    /// Starts to trim. This ends when this object or the engine is released.
    ///
    /// - Parameters:
    ///   - engine: the engine to trim, held weakly.
    ///   - onTrim: receives the level and the result of each trim: the bytes given back to the system, or the error.
    public convenience init(_ engine: Engine, onTrim: (@Sendable (TrimLevel, Result<UInt64, any Error>) -> Void)? = nil) {
        self.init(trimming: { [weak engine] level in try await engine?.trim(level) }, onTrim)
    }

    /// Starts to call `trim`, which returns nil if there is nothing left to trim.
    init(
        trimming trim: @escaping @Sendable (TrimLevel) async throws -> UInt64?,
        _ onTrim: (@Sendable (TrimLevel, Result<UInt64, any Error>) -> Void)?
    ) {
        // Levels may change faster than the engine follows; only the latest counts.
        let (levels, events) = AsyncStream.makeStream(of: TrimLevel.self, bufferingPolicy: .bufferingNewest(1))
        let policy = Protected(MemoryPolicy())
        (self.policy, self.events) = (policy, events)
        Task {
            var (last, failures) = (TrimLevel.normal, 0)
            for await level in levels {
                failures = level == last ? failures : 0
                last = level
                do {
                    guard let given = try await trim(level) else { return }
                    failures = 0
                    onTrim?(level, .success(given))
                } catch {
                    onTrim?(level, .failure(error))
                    if let error = error as? DollopError, error.status == .unsupported || error.status == .closed { continue }
                    let pause = MemoryFollower.pauses[min(failures, MemoryFollower.pauses.count - 1)]
                    failures += 1
                    Task {
                        try await Task.sleep(nanoseconds: UInt64(pause * 1e9))
                        // A newer level replaces this one. The lock orders this against `note`.
                        policy { (policy: inout MemoryPolicy) -> Void in
                            if policy.level == level { events.yield(level) }
                        }
                    }
                }
            }
        }
        for (event, listen) in systemMemoryEvents {
            let end = listen { [weak self] in self?.note(event) }
            endListening { $0.append(end) }
        }
    }

    /// Records an event that this object does not observe itself, and trims the engine to the new level.
    public func note(_ event: MemoryEvent) {
        policy { _ = events.yield($0.note(event)) }
    }

    deinit {
        events.finish()
        endListening { $0.forEach { $0() } }
    }
}
