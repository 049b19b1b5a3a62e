// Events of Apple's systems. Only this file names their frameworks, and none of that part compiles on Linux.
import Dispatch
import Foundation

#if canImport(UIKit)
import UIKit
#endif

/// Observes an event: calls the given closure on every occurrence. Returns a closure that ends this.
typealias Listen = (@escaping @Sendable () -> Void) -> () -> Void

/// The memory events of this system, and how to observe each.
var systemMemoryEvents: [(MemoryEvent, Listen)] {
    var sources: [(MemoryEvent, Listen)] = []
    #if canImport(Darwin)
    sources += [
        (.pressureNormal, pressure(.normal)),
        (.pressureWarning, pressure(.warning)),
        (.pressureCritical, pressure(.critical)),
    ]
    #endif
    #if canImport(UIKit) && !os(watchOS)
    sources += [
        (.pressureCritical, notification(UIApplication.didReceiveMemoryWarningNotification)),
        (.enteredBackground, notification(UIApplication.didEnterBackgroundNotification)),
        (.entersForeground, notification(UIApplication.willEnterForegroundNotification)),
    ]
    #endif
    return sources
}

#if canImport(Darwin)
/// Observes memory pressure of a level.
private func pressure(_ level: DispatchSource.MemoryPressureEvent) -> Listen {
    { happened in
        let source = DispatchSource.makeMemoryPressureSource(eventMask: level, queue: .global())
        source.setEventHandler { happened() }
        source.activate()
        return { source.cancel() }
    }
}
#endif

#if canImport(UIKit) && !os(watchOS)
/// Observes a notification.
private func notification(_ name: Notification.Name) -> Listen {
    { happened in
        let observer = NotificationCenter.default.addObserver(forName: name, object: nil, queue: nil) { _ in happened() }
        return { NotificationCenter.default.removeObserver(observer) }
    }
}

/// Saves a chat whenever the app goes to the background, as long as this object exists.
///
/// The current answer is stopped, and saved as far as it was generated. The saver requests background time for this from the
/// system. If the system grants none, the existing file stays.
public final class BackgroundSaver: Sendable {
    private let endListening = Protected<() -> Void>({})

    /// Starts to observe the app. This ends when this object or the chat is released.
    ///
    /// - Parameters:
    ///   - chat: the chat to stop and save, held weakly.
    ///   - url: the file.
    ///   - onSave: receives the file's size in bytes, or the error.
    public init(_ chat: Chat, to url: URL, onSave: (@Sendable (Result<UInt64, any Error>) -> Void)? = nil) {
        let end = notification(UIApplication.didEnterBackgroundNotification)({ [weak chat] in
            guard let chat else { return }
            ProcessInfo.processInfo.performExpiringActivity(withReason: "Saving a conversation") { expired in
                if expired { return }
                // The activity lasts until this block returns. It runs on a thread of the system, which may block.
                let saved = DispatchSemaphore(value: 0)
                Task {
                    do {
                        onSave?(.success(try await chat.stopAndSave(to: url)))
                    } catch {
                        onSave?(.failure(error))
                    }
                    saved.signal()
                }
                saved.wait()
            }
        })
        endListening { $0 = end }
    }

    deinit { endListening { $0() } }
}
#endif
